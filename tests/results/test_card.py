"""`Discovery.save_card` and ``pahq show --card``: a folder that the hub could take as it is."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import pahq_plugin as pahq
from pahq_plugin.cli import app as cli
from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.results.card import card_text
from pahq_plugin.results.files import record_text
from pahq_plugin.results.result import Discovery
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model


@pytest.fixture(scope="module")
def result() -> Discovery:
    return pahq.discover(small_model(), loader(), method="pahq", threshold=0.01, progress=False)


def named(record: dict[str, Any], name: str) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    changed["model"]["name"] = name
    return changed


def read(text: str) -> dict[str, Any]:
    """The card's head as huggingface_hub reads it; no network is asked."""
    return ModelCard(text).data.to_dict()


def test_a_folder_to_upload(result: Discovery, tmp_path: Path) -> None:
    folder = tmp_path / "circuit"
    made = result.save_card(folder, measures={"faithfulness": 0.9612}, license="mit", base_model="a/b")
    assert made == folder / "README.md"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "result.json", "run.json"]
    card = ModelCard.load(made)
    assert card.data.license == "mit" and card.data.base_model == "a/b"
    assert card.data.library_name == "pahq-plugin" and "circuit-discovery" in card.data.tags
    text = made.read_text()
    assert f"{len(result.circuit):,} of {len(result.decisions):,} edges" in text
    assert "| faithfulness | `0.9612` |" in text and "| threshold | `0.01` |" in text
    strongest = max((d for d in result.decisions if d.kept), key=lambda d: d.effect)
    assert f"| {strongest.edge.name.replace('>', chr(92) + '>')} | `{strongest.effect:.3g}` |" in text
    assert "pahq.Discovery.load" in text and "2510.23264" in text
    assert Discovery.load(folder, small_model()).decisions == result.decisions


def test_what_is_not_known_is_left_open(result: Discovery) -> None:
    text = card_text(result.record(), {})
    head = read(text)
    assert "license" not in head and "base_model" not in head
    assert "Not measured here" in text and "# license: choose one" in text


@pytest.mark.parametrize(
    ("name", "base"),
    [("gpt2", "gpt2"), ("Qwen/Qwen2-0.5B", "Qwen/Qwen2-0.5B"), ("gpt2 (local)", None),
     ("pythia-70m", None), ("pahq-bundled-4l", None), ("../x", None), ("a/b/c", None)],
)  # fmt: skip
def test_the_base_model_is_a_name_of_the_hub_or_none(name: str, base: str | None, result: Any) -> None:
    assert read(card_text(named(result.record(), name), {})).get("base_model") == base


@given(name=st.text(max_size=40), method=st.text(min_size=1, max_size=40))
def test_any_name_gives_a_card(name: str, method: str) -> None:
    """Also such as would end the head, or the table."""
    settings = {"method": method, "scored": True, "ablation": "resample", "seed": 0}
    model = {"name": name, "digest": "0", "edges": 0}
    text = card_text({"model": model, "settings": settings, "decisions": []}, {})
    written = text.encode("utf-8", "replace").decode("utf-8")
    head = read(written)
    assert len(head["tags"]) == 4 and written.count("\n---\n") == 1


def test_equal_results_give_equal_cards(result: Discovery, tmp_path: Path) -> None:
    one, two = (result.save_card(tmp_path / name).read_bytes() for name in "ab")
    assert one == two


def test_nothing_is_overwritten(result: Discovery, tmp_path: Path) -> None:
    made = result.save_card(tmp_path)
    made.write_text("mine")
    with pytest.raises(ConfigError, match=r"README\.md"):
        result.save_card(tmp_path)
    assert made.read_text() == "mine"
    result.save_card(tmp_path, force=True)
    assert made.read_text() != "mine"
    other = pahq.discover(small_model(), loader(), method="acdc", threshold=0.05, progress=False)
    made.unlink()
    with pytest.raises(ResultError, match="another"):
        other.save_card(tmp_path)
    assert not made.exists() and (tmp_path / "result.json").read_text() == record_text(result.record())
    other.save_card(tmp_path, force=True)
    assert Discovery.load(tmp_path, small_model()).circuit == other.circuit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": "MIT: yes"}, "license"),
        ({"base_model": "../gpt2"}, "base_model"),
        ({"measures": {"faithfulness": True}}, "measure 'faithfulness'"),
    ],
)
def test_what_no_card_can_hold_is_refused(
    options: dict[str, Any], message: str, result: Discovery, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        result.save_card(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_command(result: Discovery, tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    result.save(tmp_path)
    asked = ["show", str(tmp_path), "--card", "--license", "mit", "--base-model", "owner/name"]
    done = runner.invoke(cli.app, asked)
    assert done.exit_code == 0 and f"wrote {tmp_path / 'README.md'}" in done.stdout, done.stderr
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "owner/name"
    done = runner.invoke(cli.app, asked)
    assert done.exit_code == 1 and "exists already" in done.stderr
    assert runner.invoke(cli.app, [*asked, "--force"]).exit_code == 0


def test_nothing_is_saved_where_no_card_can_be(result: Discovery, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("mine")
    (tmp_path / "b" / "README.md").mkdir(parents=True)
    for name, force in (("a", False), ("b", True)):
        with refused(ConfigError, str(tmp_path / name / "README.md")):
            result.save_card(tmp_path / name, force=force)
        assert os.listdir(tmp_path / name) == ["README.md"]
