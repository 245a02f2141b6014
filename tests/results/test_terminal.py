"""A result as tables in a terminal: names whole, whatever the width."""

from __future__ import annotations

import re

import pytest
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.results.result import Discovery
from pahq_plugin.results.terminal import record_view
from tests.helpers.records import decision, random_record, record_of
from tests.helpers.small import loader
from tests.results.shown import printed


def test_rich_prints_the_table_of_pahq_show(found: Discovery) -> None:
    text = printed(found)
    for row, kept in zip(re.findall(r"│ +\d+ │ (.*?) +│ +(\S+) │", text), found.top(20), strict=True):
        assert row == (kept.edge.name, f"{kept.effect:.3g}")
    removed = [d.effect for d in found.decisions if not d.kept]
    assert f"Removing the other {len(removed):,} edges adds {sum(removed):.3g} to mse" in text


def test_scores_are_no_change_of_a_loss(model: PatchableModel) -> None:
    scored = pahq.discover(model, loader(), method="eap", n_edges=20, progress=False)
    assert "Removing" not in printed(scored) and "score" in printed(scored)
    assert "Removing" not in scored._repr_html_()


@pytest.mark.parametrize("width", [200, 80, 56, 42])
def test_names_are_whole_however_narrow(width: int) -> None:
    record = random_record(30)
    record["settings"] |= {"scored": False, "method": "acdc", "threshold": 0.01, "metric": "mse"}
    text = printed(record_view(record, {}, 20), width=width)
    assert max(map(len, text.splitlines())) <= width
    shown = sorted((e for e in record["decisions"] if e["kept"]), key=lambda e: -e["effect"])[:20]
    for entry in shown:
        line = next(line for line in text.splitlines() if f" {entry['edge']} " in line)
        assert f"{entry['effect']:.3g}" in line
    assert ("█" in text) == (width >= 80) and ("screened" in text or "FP32" in text) == (width >= 56)


def test_names_are_no_markup_of_rich() -> None:
    record = record_of([decision("[red]A->[/x]B", 1.0)], name="[bold]m")
    text = printed(record_view(record, {}, 5))
    assert "[red]A->[/x]B" in text and "[bold]m" in text
