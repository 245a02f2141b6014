"""A result shown and converted: terminal, notebook, pandas, networkx, and beside another result."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import networkx as nx
import pandas as pd
import pytest
from auto_circuit.utils.patchable_model import PatchableModel
from rich.console import Console

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.notebook import result_html
from pahq_plugin.results.result import Discovery, Stats
from pahq_plugin.results.terminal import record_view
from tests.helpers.records import decision, random_record, record_of
from tests.helpers.replay import canonical_order
from tests.helpers.small import loader, patchable, small_model, transformer


@pytest.fixture(scope="module")
def model() -> PatchableModel:
    return small_model()


@pytest.fixture(scope="module")
def found(model: PatchableModel) -> Discovery:
    return search(model, 0.01)


@pytest.fixture(scope="module")
def positional() -> Discovery:
    return search(patchable(transformer(), seq_len=6), 0.003)


def search(model: PatchableModel, threshold: float, **others: Any) -> Discovery:
    others = {"method": "acdc", "metric": "mse", "progress": False} | others
    return pahq.discover(model, loader(), threshold=threshold, **others)


def printed(value: object, width: int = 120, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(value)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Parsed(HTMLParser):
    """Text of cells and what is open, so that an unescaped or unclosed tag shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


# One line ------------------------------------------------------------------------------------------


def test_the_repr_is_one_line(found: Discovery) -> None:
    kept, edges = len(found.circuit), len(found.decisions)
    text = repr(found)
    assert text.startswith(f"<Discovery: {kept} of {edges} edges kept by acdc, threshold 0.01, mse")
    assert text.endswith(">") and "\n" not in text and len(text) < 160


def test_the_repr_reads_no_weights(found: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_plugin.results.result.model_digest", lambda model: 1 / 0)
    assert repr(found) and printed(found) and found._repr_html_()


# Terminal ------------------------------------------------------------------------------------------


def test_rich_prints_the_table_of_pahq_show(found: Discovery) -> None:
    text = printed(found)
    for row, kept in zip(re.findall(r"│ +\d+ │ (.*?) +│ +(\S+) │", text), found.top(20), strict=True):
        assert row == (kept.edge.name, f"{kept.effect:.3g}")
    removed = [d.effect for d in found.decisions if not d.kept]
    assert f"Removing the other {len(removed):,} edges adds {sum(removed):.3g} to mse" in text


def test_what_removed_edges_add_is_the_loss_of_the_circuit(found: Discovery) -> None:
    """Independent of the sum: the circuit alone, patched by the host, against the whole model."""
    from auto_circuit.prune import run_circuits
    from auto_circuit.types import PatchType

    model, prompts = found.model, loader()
    count = len(found.circuit)
    outs = run_circuits(model, prompts, [count], found.prune_scores, PatchType.TREE_PATCH)
    batch = next(iter(prompts))
    after = outs[count][batch.key]
    loss = (after - model(batch.clean)[model.out_slice]).pow(2).mean().item()
    removed = sum(d.effect for d in found.decisions if not d.kept)
    assert removed == pytest.approx(loss, rel=1e-3)


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


# Notebook ------------------------------------------------------------------------------------------


def test_html_has_the_rows_of_the_table(found: Discovery) -> None:
    page = Parsed(found._repr_html_())
    assert not page.open
    rows = [page.cells[i : i + 5] for i in range(0, len(page.cells), 5)]
    assert [(row[1], row[2]) for row in rows] == [
        (kept.edge.name, f"{kept.effect:.3g}") for kept in found.top(20)
    ]
    assert {row[4] for row in rows} <= {"FP32", "screened"}


def test_html_asks_nothing_of_a_network_and_runs_nothing(found: Discovery) -> None:
    text = found._repr_html_()
    assert not Parsed(text).tags & {"script", "link", "img", "iframe"}
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_html_takes_the_theme_of_the_notebook(found: Discovery) -> None:
    """No background and no text colour of its own: it is as readable in a dark theme as in a light."""
    style = found._repr_html_().split("</style>")[0]
    assert set(re.findall(r"(?<![-\w])color: ([^;}]+)", style)) == {"inherit"}
    backgrounds = re.findall(r"([^{}]+)\{[^}]*background: (#[0-9a-f]+)", style)
    assert [("bar" in selector) for selector, _ in backgrounds] == [True, True]


def test_html_is_escaped() -> None:
    name = "<script>alert(1)</script>&amp;\"'->B"
    record = record_of([decision(name, 1.0), decision("A->B", -0.5)], name="<b>m")
    record["settings"]["metric"] = "<i>mine"
    page = Parsed(result_html(record, {}, 5))
    assert not page.tags & {"script", "b", "i"} and page.cells[1] == name


def test_an_empty_circuit_is_shown(model: PatchableModel) -> None:
    edges = canonical_order(model)
    settings = {"method": "acdc", "threshold": 1.0, "metric": "mse", "ablation": "resample"}
    nothing = Discovery(tuple(Decision(e, 0.0, False, True) for e in edges), settings, Stats(), model)
    assert "0 of" in repr(nothing) and "0 of" in printed(nothing) and "0 of" in nothing._repr_html_()
    assert nothing.top() == () and nothing.to_networkx().number_of_nodes() == 0


# top -----------------------------------------------------------------------------------------------


def test_top_is_the_strongest_kept(model: PatchableModel, found: Discovery) -> None:
    assert [d.edge for d in found.top(5)] == [
        d.edge for d in sorted(found.decisions, key=lambda d: -d.effect)[:5]
    ]
    assert set(d.edge for d in found.top(10**6)) == found.circuit and found.top(0) == ()
    scored = pahq.discover(model, loader(), method="eap", n_edges=20, progress=False)
    sizes = [abs(d.effect) for d in scored.top()]
    assert sizes == sorted(sizes, reverse=True) and min(d.effect for d in scored.top()) < 0
    for wrong in (-1, 2.0, True, "3"):
        with pytest.raises(ConfigError, match="count must be an integer of at least 0"):
            found.top(wrong)  # type: ignore[arg-type]


# pandas --------------------------------------------------------------------------------------------


def test_pandas_has_a_row_an_edge_in_the_order_decided(found: Discovery) -> None:
    frame = found.to_pandas()
    columns = ["edge", "src", "dest", "seq_idx", "effect", "kept", "exact", "score"]
    assert list(frame.columns) == columns and frame.index.name == "order"
    assert list(frame.index) == list(range(len(found.decisions)))
    for row, one in zip(frame.itertuples(), found.decisions, strict=True):
        assert (row.edge, row.src, row.dest) == (one.edge.name, one.edge.src.name, one.edge.dest.name)
        assert (row.effect, row.kept, row.exact) == (one.effect, one.kept, one.exact)
        assert row.score == float(one.edge.prune_score(found.prune_scores))
    assert frame.seq_idx.isna().all() and frame.kept.dtype == bool
    assert set(frame.nlargest(len(found.circuit), "score").edge) == {e.name for e in found.circuit}


def test_pandas_of_positions(positional: Discovery) -> None:
    frame = positional.to_pandas()
    assert frame.seq_idx.dtype == "Int64"
    assert list(frame.seq_idx) == [d.edge.seq_idx for d in positional.decisions]
    assert isinstance(frame, pd.DataFrame)


# networkx ------------------------------------------------------------------------------------------


def test_networkx_is_the_circuit(found: Discovery) -> None:
    graph = found.to_networkx()
    assert isinstance(graph, nx.DiGraph) and nx.is_directed_acyclic_graph(graph)
    assert {data["edge"] for *_, data in graph.edges(data=True)} == {e.name for e in found.circuit}
    for source, destination, data in graph.edges(data=True):
        name = f"{source}->{destination}" + (f".{data['slot']}" if "slot" in data else "")
        assert name == data["edge"] and data["kept"] and data["effect"] >= 0.01
    assert {data["kind"] for _, data in graph.nodes(data=True)} <= {"input", "head", "mlp", "output"}
    heads = [(n, d) for n, d in graph.nodes(data=True) if d["kind"] == "head"]
    assert heads and all(n == f"A{d['block']}.{d['head']}" for n, d in heads)
    assert graph.graph["method"] == "acdc" and graph.graph["threshold"] == 0.01


def test_paths_lead_through_heads(found: Discovery) -> None:
    graph = found.to_networkx(whole=True)
    assert graph.number_of_edges() == len(found.decisions)
    for node in graph:
        assert nx.has_path(graph, "Resid Start", node) and nx.has_path(graph, node, "Resid End")


def test_positions_are_edges_of_their_own(positional: Discovery) -> None:
    graph = positional.to_networkx()
    assert graph.number_of_edges() == len(positional.circuit)
    assert {data["seq_idx"] for *_, data in graph.edges(data=True)} <= set(range(6))
    assert ("Resid Start", "MLP 0") in graph.edges() or graph.number_of_nodes() > 1


def test_graph_files_take_the_graph(positional: Discovery) -> None:
    text = "\n".join(nx.generate_graphml(positional.to_networkx()))
    read = nx.parse_graphml(text, force_multigraph=True)
    assert read.number_of_edges() == len(positional.circuit)


# diff ----------------------------------------------------------------------------------------------


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
    with pytest.raises(
        ResultError, match=r"different graphs.*only the first has .*with equal positional"
    ):
        found.diff(positional)
    with pytest.raises(ResultError, match="different graphs"):
        search(patchable(transformer(n_layers=1)), 0.01).diff(found)
    with pytest.raises(ConfigError, match=r"diff\(set\): compare with another Discovery"):
        found.diff(found.circuit)  # type: ignore[arg-type]
