"""What `OnnxPatcher` refuses: prompts, edges and heads that do not fit its graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pahq_plugin.errors import ConfigError, GraphError, PromptError
from tests.helpers.patchers import CLEAN, CORRUPT, EDGE, INTO_HEAD, Graphs
from tests.helpers.refused import refused
from tests.helpers.small import VOCABULARY


def test_tokens_are_given(graphs: Graphs) -> None:
    with refused(PromptError, "tokens"):
        graphs.dense.run(None)
    for patcher in (graphs.dense, graphs.sweep):
        with refused(PromptError, "nothing to patch with"):
            patcher.run(CLEAN, None, edges=[EDGE])
    with refused(PromptError, "nothing to patch with"):
        graphs.dense.run(CLEAN, mask=graphs.dense.mask([EDGE]))
    with refused(PromptError, "[4, 3]"):
        graphs.dense.run(CLEAN, CORRUPT[:, :3], edges=[EDGE])


def test_prompts_of_another_graph(graphs: Graphs) -> None:
    prompts = graphs.dense.prompts(CLEAN, CORRUPT)
    assert np.isfinite(graphs.dense.run(prompts, edges=[EDGE])).all()
    for other in (graphs.full, graphs.sweep, graphs.late):
        with refused(PromptError, "another graph"):
            other.run(prompts, edges=[EDGE])
        with refused(PromptError, "another graph"):
            other.inputs_for(prompts, [EDGE])


def test_a_graph_of_later_blocks_takes_no_tokens(graphs: Graphs) -> None:
    late, known = graphs.late, graphs.late.description

    def zeros(n: int, batch: int = 2, length: int = 5, width: int = 32) -> Any:
        return np.zeros((n, batch, length, width), np.float32)

    def prompts(**changes: Any) -> object:
        right = {"residual": zeros(1)[0], "earlier": zeros(known.n_earlier)}
        return late.prompts(**right | {"corrupt": zeros(len(known.sources))} | changes)

    assert np.isfinite(late.run(prompts(), edges=[EDGE])).all()
    for call in (late.prompts, lambda: prompts(residual=None), lambda: prompts(tokens=CLEAN)):
        with refused(PromptError, "block 1"):
            call()
    for name, bad in (("earlier", zeros(known.n_earlier, 3)), ("earlier", zeros(1)),
                      ("residual", zeros(1, width=8)[0]), ("residual", zeros(1, batch=0)[0]),
                      ("residual", zeros(1, length=0)[0]), ("residual", zeros(1, length=17)[0]),
                      ("corrupt", CORRUPT), ("residual", zeros(1)[0] + np.float32(np.inf))):  # fmt: skip
        with refused(PromptError, name):
            prompts(**{name: bad})
    with refused(PromptError):
        graphs.dense.prompts(CLEAN, residual=zeros(1)[0])
    with refused(GraphError, "layer 0"):
        late.run(prompts(), edges=[EDGE], head=(0, 1))


def test_as_many_tokens_as_the_graph_needs(graphs: Graphs) -> None:
    assert graphs.not_first.run(CLEAN[:, :2]).shape == (4, 1, VOCABULARY)
    for length in (1, 7):
        with refused(PromptError, "6 positions"):
            graphs.by_position.run(np.zeros((1, length), int))


@pytest.mark.parametrize("edges", [None, 3, b"A", [None], [b"A"], ["A0.9->MLP 1"], [""], [[EDGE]]])
def test_edges_that_are_none(edges: Any, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep):
        prompts = patcher.prompts(CLEAN, CORRUPT)
        for call in (lambda: patcher.run(prompts, edges=edges), lambda: patcher.mask(edges),  # noqa: B023
                     lambda: patcher.run_each(prompts, edges=edges),  # noqa: B023
                     lambda: patcher.inputs_for(prompts, edges)):  # fmt: skip # noqa: B023
            with refused(GraphError, "edge"):
                call()


def test_edges_of_one_call(graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep):
        prompts = patcher.prompts(CLEAN, CORRUPT)
        with refused(ConfigError, "edges"):
            patcher.run_each(prompts)
        for edges in ([], [EDGE, INTO_HEAD]):
            with refused(ConfigError, "destination"):
                patcher.inputs_for(prompts, edges)
    for edges in ([], [EDGE, INTO_HEAD], [EDGE, EDGE]):
        with refused(ConfigError, str(len(edges))):
            graphs.sweep.run(CLEAN, CORRUPT, edges=edges)


@pytest.mark.parametrize("head", [(0, 4), "none", np.array([1, 2])])
def test_a_head_outside_the_graph(head: Any, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep, graphs.full, graphs.fixed):
        with refused(GraphError, "head"):
            patcher.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=head)
        with refused(GraphError, "head"):
            patcher.run_each(CLEAN, CORRUPT, edges=[INTO_HEAD], head=head)


def test_a_head_that_the_graph_does_not_choose(graphs: Graphs) -> None:
    with refused(ConfigError, "(0, 1)"):
        graphs.full.run(CLEAN, CORRUPT, edges=[EDGE], head=(0, 1))
    with refused(ConfigError, "(1, 2)"):
        graphs.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=None)
    auto = graphs.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD])
    assert np.array_equal(graphs.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=(1, 2)), auto)


def test_a_mask_where_there_is_none(graphs: Graphs) -> None:
    with refused(ConfigError, "sweep"):
        graphs.sweep.run(CLEAN, CORRUPT, mask=graphs.sweep.mask([EDGE]))
