"""What `OnnxPatcher` refuses: prompts, edges, heads and masks that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pahq_exporters import OnnxPatcher, export_onnx
from pahq_plugin.errors import ConfigError, ExportError, GraphError, PromptError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.refused import refused
from tests.helpers.small import VOCABULARY, patchable, small_model, tokens, transformer

EDGE = "A0.1->MLP 1"
INTO_HEAD = "A0.1->A1.2.Q"
CLEAN, CORRUPT = tokens(0).numpy(), tokens(1).numpy()
FULL = PrecisionConfig(low="fp32", mlp="fp32")


@dataclass
class Graphs:
    """Exports of one small model, and of another."""

    dense: OnnxPatcher
    sweep: OnnxPatcher
    full: OnnxPatcher
    late: OnnxPatcher
    fixed: OnnxPatcher
    not_first: OnnxPatcher
    by_position: OnnxPatcher


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder, model = tmp_path_factory.mktemp("graphs"), small_model()

    def patcher(name: str, exported: Any = model, **options: Any) -> OnnxPatcher:
        return OnnxPatcher(export_onnx(exported, folder / f"{name}.onnx", **options), threads=1)

    others = small_model()
    others.out_slice = (slice(None), slice(1, None))
    return Graphs(
        dense=patcher("dense"),
        sweep=patcher("sweep", graph="sweep"),
        full=patcher("full", precision=FULL),
        late=patcher("late", start_layer=1),
        fixed=patcher("fixed", head=(1, 2)),
        not_first=patcher("not_first", others, positions="model"),
        by_position=patcher("by_position", patchable(transformer(), seq_len=6)),
    )


# Prompts ------------------------------------------------------------------------------------------

TOKENS: dict[str, tuple[Any, str]] = {
    "one prompt": (CLEAN[0], "[batch, pos]"),
    "three axes": (CLEAN[None], "[batch, pos]"),
    "no prompt": (CLEAN[:0], "[batch, pos]"),
    "no token": (CLEAN[:, :0], "[batch, pos]"),
    "fractions": (CLEAN * 1.0, "float64"),
    "truth values": (CLEAN > 3, "bool"),
    "text": ("Mary", "[batch, pos]"),
    "words": ([["a", "b"]], "[batch, pos]"),
    "objects": ([[object()]], "object"),
    "an object": ({}, "object"),
    "ragged": ([[1, 2], [1]], "array"),
    "vocabulary": (CLEAN + VOCABULARY, f"vocabulary of {VOCABULARY}"),
    "negative": (CLEAN - VOCABULARY, "id -"),
    "64 bits": ([[2**63]], "9223372036854775808"),
    "more than 64 bits": ([[2**70]], "object"),
    "too long": (np.zeros((2, 17), int), "17 tokens exceed the model's context of 16"),
    "gradients": (torch.zeros(2, 2, requires_grad=True), "detach"),
    "half precision": (torch.zeros(2, 2, dtype=torch.bfloat16), "BFloat16"),
}


@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("kind", ["dense", "sweep"])
def test_tokens_that_do_not_fit(case: str, kind: str, graphs: Graphs) -> None:
    bad, word = TOKENS[case]
    patcher: OnnxPatcher = getattr(graphs, kind)
    with refused(PromptError, "tokens", word):
        patcher.run(bad, CORRUPT, edges=[EDGE])
    with refused(PromptError, "tokens", word):
        patcher.sources(bad)
    with refused(PromptError, "corrupt"):
        patcher.run(CLEAN, bad, edges=[EDGE])


def test_tokens_are_given(graphs: Graphs) -> None:
    with refused(PromptError, "tokens"):
        graphs.dense.run(None)
    for patcher in (graphs.dense, graphs.sweep):
        with refused(PromptError, "nothing to patch with"):
            patcher.run(CLEAN, None, edges=[EDGE])
    with refused(PromptError, "nothing to patch with"):
        graphs.dense.run(CLEAN, mask=graphs.dense.mask([EDGE]))
    for bad in (CORRUPT[:2], CORRUPT[:, :3]):
        with refused(PromptError, "[4, 6]"):
            graphs.dense.run(CLEAN, bad, edges=[EDGE])


CORRUPTIONS: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda x: np.where(x == x.max(), np.nan, x),
    "infinity": lambda x: np.where(x == x.max(), np.inf, x),
    "too large": lambda x: x.astype(np.float64) * 1e300,
    "a source less": lambda x: x[1:],
    "a prompt less": lambda x: x[:, 1:],
    "a position less": lambda x: x[:, :, 1:],
    "narrow": lambda x: x[..., 1:],
    "flat": lambda x: x.reshape(len(x), -1, x.shape[-1]),
    "integers": lambda x: x.astype(int),
    "complex": lambda x: x * 1j,
    "half precision": lambda x: torch.tensor(x).bfloat16(),
    "gradients": lambda x: torch.tensor(x, requires_grad=True),
    "ragged": lambda x: [[[[1.0], [1.0, 2.0]]]],
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corrupt_outputs_that_do_not_fit(case: str, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep):
        right = patcher.sources(CORRUPT)
        assert np.isfinite(patcher.run(CLEAN, right.astype(np.float64), edges=[EDGE])).all()
        with refused(PromptError, "corrupt"):
            patcher.run(CLEAN, CORRUPTIONS[case](right), edges=[EDGE])


def test_prompts_of_another_graph(graphs: Graphs) -> None:
    prompts = graphs.dense.prompts(CLEAN, CORRUPT)
    assert np.isfinite(graphs.dense.run(prompts, edges=[EDGE])).all()
    for other in (graphs.full, graphs.sweep, graphs.late):
        with refused(PromptError, "another graph"):
            other.run(prompts, edges=[EDGE])
        with refused(PromptError, "another graph"):
            other.inputs_for(prompts, [EDGE])
    with refused(ConfigError, "corrupt", "prompts"):
        graphs.dense.run(prompts, CORRUPT, edges=[EDGE])


def test_a_graph_of_later_blocks_takes_no_tokens(graphs: Graphs) -> None:
    late, known = graphs.late, graphs.late.description

    def zeros(n: int, batch: int = 2, length: int = 5, width: int = 32) -> Any:
        return np.zeros((n, batch, length, width), np.float32)

    def prompts(**changes: Any) -> object:
        right = {"residual": zeros(1)[0], "earlier": zeros(known.n_earlier)}
        return late.prompts(**right | {"corrupt": zeros(len(known.sources))} | changes)

    assert np.isfinite(late.run(prompts(), edges=[EDGE])).all()
    for call in (lambda: late.run(CLEAN), lambda: late.prompts(), lambda: prompts(residual=None),
                 lambda: late.sources(CLEAN), lambda: prompts(tokens=CLEAN)):  # fmt: skip
        with refused(PromptError, "block 1"):
            call()
    for name, bad in (("earlier", zeros(known.n_earlier, 3)), ("earlier", zeros(1)),
                      ("residual", zeros(1, width=8)[0]), ("residual", zeros(1, batch=0)[0]),
                      ("residual", zeros(1, length=0)[0]), ("residual", zeros(1, length=17)[0]),
                      ("corrupt", CORRUPT), ("residual", zeros(1)[0] + np.float32(np.inf))):  # fmt: skip
        with refused(PromptError, name):
            prompts(**{name: bad})
    with refused(PromptError, "starts with tokens"):
        graphs.dense.prompts(CLEAN, residual=zeros(1)[0])
    with refused(GraphError, "layer 0"):
        late.run(prompts(), edges=[EDGE], head=(0, 1))


def test_as_many_tokens_as_the_graph_needs(graphs: Graphs) -> None:
    with refused(PromptError, "1 token"):
        graphs.not_first.run(CLEAN[:, :1])
    assert graphs.not_first.run(CLEAN[:, :2]).shape == (4, 1, VOCABULARY)
    for length in (1, 5, 7):
        with refused(PromptError, "tokens", "6 positions"):
            graphs.by_position.run(np.zeros((1, length), int))


# Edges, heads and masks ---------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [None, 3, EDGE, b"A", [None], [b"A"], ["A0.9->MLP 1"], [""], [[EDGE]]])
def test_edges_that_are_none(edges: Any, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep):
        prompts = patcher.prompts(CLEAN, CORRUPT)
        for call in (lambda: patcher.run(prompts, edges=edges), lambda: patcher.mask(edges),  # noqa: B023
                     lambda: patcher.run_each(prompts, edges=edges),  # noqa: B023
                     lambda: patcher.inputs_for(prompts, edges)):  # fmt: skip # noqa: B023
            with refused(GraphError, "edge"):
                call()


def test_edges_of_another_model(graphs: Graphs) -> None:
    other = patchable(transformer(n_layers=3, separate_qkv=False), separate_qkv=False)
    known = set(graphs.dense.description.edges())
    for edge in other.edges:
        if edge.dest.name != "Resid End" and edge.name not in known:
            with refused(GraphError, repr(edge.name)):
                graphs.dense.run(CLEAN, CORRUPT, edges=[edge])


def test_edges_of_one_call(graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep):
        prompts = patcher.prompts(CLEAN, CORRUPT)
        with refused(ConfigError, "edges is empty"):
            patcher.run_each(prompts)
        for edges in ([], [EDGE, INTO_HEAD]):
            with refused(ConfigError, "one destination"):
                patcher.inputs_for(prompts, edges)
    for edges in ([], [EDGE, INTO_HEAD], [EDGE, EDGE]):
        with refused(ConfigError, "one edge at a time", str(len(edges)), "dense"):
            graphs.sweep.run(CLEAN, CORRUPT, edges=edges)


HEADS = [(0, 4), (2, 0), (-1, 0), (0, -1), (0,), (0, 1, 2), (0.0, 1), (True, 0), "1.2", "none", 3, {}]


@pytest.mark.parametrize("head", [*HEADS, np.array([1, 2])])
def test_a_head_outside_the_graph(head: Any, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.sweep, graphs.full, graphs.fixed):
        with refused(GraphError, "head"):
            patcher.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=head)
        with refused(GraphError, "head"):
            patcher.run_each(CLEAN, CORRUPT, edges=[INTO_HEAD], head=head)


def test_a_head_that_the_graph_does_not_choose(graphs: Graphs) -> None:
    with refused(ConfigError, "(0, 1)", "head (1, 2) in FP32"):
        graphs.fixed.run(CLEAN, CORRUPT, edges=[EDGE], head=(0, 1))
    with refused(ConfigError, "(0, 1)", "no head in FP32"):
        graphs.full.run(CLEAN, CORRUPT, edges=[EDGE], head=(0, 1))
    for head in ((1, 1), None):
        with refused(ConfigError, "sweep", "(1, 2)"):
            graphs.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=head)
    auto = graphs.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD])
    assert np.array_equal(graphs.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=(1, 2)), auto)


MASKS: dict[str, Callable[[Any], Any]] = {
    "a row": lambda mask: mask[0],
    "turned": lambda mask: mask.T,
    "four axes": lambda mask: mask[None, None],
    "none": lambda mask: mask[None][:0],
    "NaN": lambda mask: mask * np.nan,
    "too large": lambda mask: mask.astype(float) * 1e300,
    "complex": lambda mask: mask * 1j,
    "objects": lambda mask: mask.astype(object),
    "text": lambda mask: EDGE,
    "a number": lambda mask: 1,
    "ragged": lambda mask: [[1, 2], [1]],
    "gradients": lambda mask: torch.tensor(mask, requires_grad=True),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_that_does_not_fit(case: str, graphs: Graphs) -> None:
    for patcher in (graphs.dense, graphs.by_position):
        name = EDGE if patcher is graphs.dense else f"{EDGE} @2"
        with refused(ConfigError, "mask"):
            patcher.run(CLEAN, CORRUPT, mask=MASKS[case](patcher.mask([name])))


def test_a_mask_where_there_is_none(graphs: Graphs) -> None:
    with refused(ConfigError, "not both"):
        graphs.dense.run(CLEAN, CORRUPT, edges=[EDGE], mask=graphs.dense.mask([EDGE]))
    with refused(ConfigError, "sweep"):
        graphs.sweep.run(CLEAN, CORRUPT, mask=graphs.sweep.mask([EDGE]))


def test_fed_inputs_that_do_not_fit(graphs: Graphs) -> None:
    right = graphs.dense.inputs_for(graphs.dense.prompts(CLEAN, CORRUPT), [EDGE])
    assert np.isfinite(graphs.dense.feed(right)).all()
    for name, value in right.items():
        for bad in (value[None], value.astype(np.float64), "x", [[1], [1, 2]]):
            with refused(ConfigError, name):
                graphs.dense.feed(right | {name: bad})
        with refused(ConfigError, name):
            graphs.dense.feed({k: v for k, v in right.items() if k != name})
    for bad in ({}, right | {"more": CLEAN}):
        with refused(ConfigError, "inputs are"):
            graphs.dense.feed(bad)
    with refused(ConfigError, "corrupt"):
        graphs.dense.feed(right | {"tokens": CLEAN[:2]})
    with refused(ExportError, "cannot be run"):
        graphs.dense.feed(right | {"tokens": CLEAN + VOCABULARY})
