"""Changed inputs on the rows of a pass against sums of what the host computes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pahq_plugin.discovery.checks import ablation_type
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.incremental.starts import Shift, Start, changing_edges, starts_without
from pahq_plugin.engines.question import Question
from pahq_plugin.host import Edge
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.patching import prepare
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from tests.helpers.architectures import build, random_architecture


def test_rows_in_front_of_and_behind_those_that_differ() -> None:
    before, delta, after = (torch.full((1, 1, 1), float(value)) for value in (1, 2, 3))
    start = Start(None, 2, delta[None], before, after)  # type: ignore[arg-type]
    found = [float(row) if row is not None else None for row in map(start.on_row, range(5))]
    assert found == [1.0, 1.0, 2.0, 3.0, 3.0]
    for rows in (slice(0, 5), slice(1, 4), slice(3, 5), slice(0, 2)):
        values = torch.zeros(rows.stop - rows.start)
        for some, term in start.on(rows):
            values[some] += term.flatten()
        assert values.tolist() == found[rows]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("seed", range(8))
@torch.inference_mode()
def test_inputs_lose_what_their_removed_edges_carry(seed: int, shifted: bool) -> None:
    architecture = random_architecture(seed)
    model, loader = build(architecture)
    prompts, ablation = collect_batches(model, loader, 1), ablation_type(architecture.ablation)
    engine = IncrementalEngine(Question(model, loader, prompts, ablation, resolve_metric("mse", 2)))
    graph, plans, state = engine._graph, engine._plans, engine._states[0]
    prepared = prepare(model, loader, prompts, ablation)[0]
    difference = prepared.clean - prepared.ablated  # [source, batch, pos, d_model]
    draw, order = random.Random(seed), canonical_edges(model)
    stage = graph.place(draw.choice(order))[0]
    candidates = [edge for edge in order if graph.place(edge)[0] == stage]
    gone = np.random.default_rng(seed).random((3, len(candidates))) < 0.4
    place = graph.place(candidates[0])
    shifts = {}
    if shifted and not graph.positional:
        positions = graph.sets.of(graph.needs(stage)[place[1], place[2]])
        shifts = {place: Shift(positions, torch.ones(difference[0][:, positions.array].shape))}
    starts = starts_without(candidates, gone, graph, plans, state, shifts)

    for at in {graph.place(edge) for edge in candidates}:
        for row in range(len(gone)):
            expected = torch.zeros_like(difference[0])
            for edge, is_gone in zip(candidates, gone[row], strict=True):
                if is_gone and graph.place(edge) == at:
                    where = (
                        slice(None) if edge.seq_idx is None else slice(edge.seq_idx, edge.seq_idx + 1)
                    )
                    expected[:, where] -= difference[edge.src.src_idx][:, where]
            expected += float(at in shifts)
            needed = torch.from_numpy(graph.needs(stage)[at[1], at[2]])
            found, lost = torch.zeros_like(expected), starts[at].on_row(row) if at in starts else None
            if lost is not None:
                found[:, starts[at].positions.index] += lost
            torch.testing.assert_close(found[:, needed], expected[:, needed], rtol=1e-4, atol=1e-5)

    def shows(edge: Edge) -> bool:
        at = graph.place(edge)
        needed = graph.needs(stage)[at[1], at[2]].copy()
        if edge.seq_idx is not None:
            needed &= np.arange(len(needed)) == edge.seq_idx
        return bool((difference[edge.src.src_idx][:, torch.from_numpy(needed)].abs() > 1e-5).any())

    changing = changing_edges(candidates, graph, plans, state)
    assert all(changes or not shows(edge) for edge, changes in zip(candidates, changing, strict=True))
