"""``pahq doctor``: what is installed here, and what is missing."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.helpers.commands import strict_json, succeeds


def test_doctor_says_what_is_here() -> None:
    text = succeeds("doctor")
    assert version("torch") in text and "fp8_e4m3" in text
    assert "pahq searches with estimates" in " ".join(text.split())
    found = strict_json(succeeds("doctor", "--json"))
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["auto-circuit"] == "1.0.1"
    assert set(found["formats"]) == {"fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"}
    assert found["formats"]["fp32"] is True and found["python"]
    if found["device"] == "cpu":
        assert found["kernels"] == ({"int8": "vnni"} if found["formats"]["int8"] else {})
    assert isinstance(found["advice"], list)


def test_doctor_says_what_is_missing_for_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    for present in (True, False):
        monkeypatch.setattr("pahq_plugin.cli.doctor.find_spec", lambda name, here=present: here or None)
        assert ("pahq-plugin[onnx]" in succeeds("doctor")) is not present
