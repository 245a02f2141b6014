"""A result beside another: what both have, what one lacks, and what is not compared."""

from __future__ import annotations

import pytest
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.results.result import Discovery
from tests.helpers.small import loader, patchable, small_model, transformer
from tests.results.shown import Parsed, printed, search


def test_a_result_does_not_differ_from_itself(found: Discovery) -> None:
    same = found.diff(found)
    assert same.same_circuit and same.jaccard == 1 and same.changes == ()
    assert same.shared == tuple(d.edge for d in found.decisions if d.kept)
    assert "all effects are equal" in repr(same)


def test_what_a_smaller_circuit_lacks(model: PatchableModel, found: Discovery) -> None:
    small = search(model, 0.05)
    diff = found.diff(small)
    assert {c.edge for c in diff.only_first} == found.circuit - small.circuit != set()
    assert {c.edge for c in diff.only_second} == small.circuit - found.circuit
    assert set(diff.shared) == found.circuit & small.circuit
    union = found.circuit | small.circuit
    assert diff.jaccard == len(found.circuit & small.circuit) / len(union)
    assert not diff.same_circuit and diff.same_unit and diff.edges == len(found.decisions)
    assert diff.names == ("acdc, threshold 0.01", "acdc, threshold 0.05")
    effects = [{d.edge: d.effect for d in one.decisions} for one in (found, small)]
    assert {c.edge for c in diff.changes} == {e for e in effects[0] if effects[0][e] != effects[1][e]}
    for change in (*diff.changes, *diff.only_first):
        assert (change.first, change.second) == (effects[0][change.edge], effects[1][change.edge])
    steps = [abs(change.by) for change in diff.changes]
    assert steps == sorted(steps, reverse=True)
    turned = small.diff(found)
    assert {c.edge for c in turned.only_second} == {c.edge for c in diff.only_first}


def test_a_difference_shows_itself(model: PatchableModel, found: Discovery) -> None:
    diff = found.diff(search(model, 0.05))
    assert "\n" not in repr(diff) and f"{len(diff.shared)} edges in both" in repr(diff)
    text, page = printed(diff), Parsed(diff._repr_html_())
    assert not page.open
    for change in diff.only_first[:20]:
        assert change.edge.name in text and change.edge.name in page.cells
    assert "Only in acdc, threshold 0.01" in text


def test_scores_and_effects_are_not_compared(model: PatchableModel, found: Discovery) -> None:
    scored = pahq.discover(model, loader(), method="eap", n_edges=20, progress=False)
    diff = found.diff(scored)
    assert not diff.same_unit and diff.changes == () and "different units" in repr(diff)
    assert diff.names == ("acdc", "eap")
    assert not found.diff(search(model, 0.01, metric="kl_div")).same_unit


def test_equal_settings_are_told_apart(found: Discovery) -> None:
    assert found.diff(found).names == ("first acdc", "second acdc")


def test_other_weights_are_compared_and_other_graphs_refused(
    found: Discovery, positional: Discovery
) -> None:
    assert found.diff(search(small_model(seed=1), 0.01)).edges == len(found.decisions)
    with pytest.raises(ResultError, match="positional"):
        found.diff(positional)
    with pytest.raises(ResultError, match="graphs"):
        search(patchable(transformer(n_layers=1)), 0.01).diff(found)
    with pytest.raises(ConfigError, match="set"):
        found.diff(found.circuit)  # type: ignore[arg-type]
