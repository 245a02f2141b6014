"""Tables in a terminal: words whole, whatever the width."""

from __future__ import annotations

import pytest

from pahq_plugin.cli.output import print_table

COLUMNS = ["method", "problems", "differs from FP32", "ROC AUC", "CPR, logit diff", "MiB"]
ROWS = [
    ["subnetwork-probing", "5", "0 of 38,856", "0.999", "0.88", "240"],
    ["pahq", "5", "0 of 38,856", "0.999", "0.88", "28"],
]


@pytest.mark.parametrize("width", [34, 40, 60, 80, 100, 200])
def test_words_are_whole_and_lines_fit(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("All methods", COLUMNS, ROWS)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    words = set(printed.replace(";", " ").split())
    assert {word for name in COLUMNS for word in name.split()} <= words
    assert {"subnetwork-probing", "5"} <= words
    assert ("A wider terminal shows: " in printed) == (width < 80)
