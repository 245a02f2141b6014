"""The kept edges: where destinations are needed, and what a change can reach."""

from __future__ import annotations

import numpy as np
import torch

from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Shape
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.architectures import random_architecture
from tests.helpers.engines import engines
from tests.helpers.small import patchable, transformer


def graph_of_two_heads(first_change: int = 0) -> tuple[KeptGraph, dict]:
    """Two blocks of one head without MLPs, 3 tokens, the output read at the last one."""
    model = patchable(transformer(n_layers=2, n_heads=1, attn_only=True))
    shape = Shape(3, np.array([False, False, True]), causal=True, first_change=first_change)
    return KeptGraph(model, shape, torch.device("cpu")), model.edge_name_dict[None]


def test_needs_by_hand() -> None:
    """The last block's query is needed at the last position alone; what only that query and the output
    read is needed there, too, but keys and values of it everywhere before."""
    graph, edges = graph_of_two_heads()
    last, everywhere = [False, False, True], [True] * 3
    assert graph.needs(1)[:, 0].tolist() == [last, everywhere, everywhere]
    assert graph.needs(0)[:, 0].tolist() == [everywhere] * 3
    graph.remove([edges["A0.0->A1.0.K"], edges["A0.0->A1.0.V"]])
    assert graph.needs(0)[:, 0].tolist() == [last, everywhere, everywhere]
    graph.remove([edges["A0.0->A1.0.Q"], edges["A0.0->Resid End"]])
    assert not graph.needs(0).any() and not graph.is_needed(graph.place(edges["Resid Start->A0.0.Q"]))
    graph.reset()
    assert graph.needs(0).all()


def test_cones_by_hand() -> None:
    """A changed key changes the queries behind it; the cone ends at what the metric reads."""
    graph, edges = graph_of_two_heads()
    start = graph.place(edges["Resid Start->A0.0.K"])
    at_1 = np.array([False, True, False])
    steps = graph.cone({start: at_1})
    assert [step.stage for step in steps] == [0, 1, 2]
    assert [step.positions.array.tolist() for step in steps] == [[1, 2], [2], [2]]
    query, key, value = steps[1].slots
    assert [slot.positions.array.tolist() for slot in (query, key, value)] == [[2], [1, 2], [1, 2]]
    graph.remove([edges["A0.0->Resid End"], *(edges[f"A0.0->A1.0.{slot}"] for slot in "QKV")])
    assert graph.cone({start: at_1}) == []


def test_an_edge_of_one_position_feeds_that_position_alone() -> None:
    """The same model with edges of single tokens: the query at token 2 reads only head 0 at token 2."""
    model = patchable(transformer(n_layers=2, n_heads=1, attn_only=True), seq_len=3)
    shape = Shape(3, np.array([True] * 3), causal=True, first_change=0)
    graph = KeptGraph(model, shape, torch.device("cpu"))
    into_query = [e for e in model.edges if e.dest.name == "A1.0.Q" and e.src.name == "A0.0"]
    others = [e for e in model.edges if e.src.name == "A0.0" and e not in into_query]
    graph.remove([*others, *(e for e in into_query if e.seq_idx != 2)])
    start = graph.place(next(e for e in model.edges if e.dest.name == "A0.0.V"))
    steps = graph.cone({start: np.array([True] * 3)})
    assert [(step.stage, step.positions.array.tolist()) for step in steps] == [
        (0, [2]), (1, [2]), (2, [2]),
    ]  # fmt: skip


def test_nothing_is_computed_before_the_first_change() -> None:
    graph, edges = graph_of_two_heads(first_change=2)
    steps = graph.cone({graph.place(edges["Resid Start->A0.0.V"]): np.ones(3, dtype=bool)})
    assert [step.positions.array.tolist() for step in steps] == [[2]] * 3


def test_a_destination_that_nothing_reads_costs_nothing() -> None:
    """All edges into the output are gone, so every other effect is zero without an evaluation."""
    model, _, quick = engines(random_architecture(5, max_edges=150))
    edges = canonical_edges(model)
    output = [edge for edge in edges if edge.dest == edges[0].dest]
    for edge in output:
        quick.remove([edge])
    before = quick.evaluations
    for edge in edges[len(output) :]:
        assert quick.effects([edge], [False], exact=True) == [0.0]
        quick.remove([edge])
    assert quick.evaluations == before
