"""Scores, values and unembedding in few bits: the incremental engine against the host's forwards.

Models are FP64, so that no operand lies near enough to a tie to be rounded to different sides by two
engines that sum in another order.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import AblationType, Edge

from pahq_plugin.engines.choose import make_engine
from pahq_plugin.engines.question import Question
from pahq_plugin.host import graph
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.host.lending import borrowed
from pahq_plugin.host.prompts import collect_batches
from pahq_plugin.metrics import resolve_metric
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.small import VOCABULARY, patchable, tokens, transformer

MODELS: dict[str, dict[str, Any]] = {
    "layer_norm": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4, "attn_only": True},
    "alibi": {"positional_embedding_type": "alibi", "normalization_type": "RMS"},
}


LOW = ("int8", "bf16")


def everywhere_different() -> PromptDataLoader:
    """Prompt pairs that differ at every position."""
    clean, shift = tokens(), torch.randint(
        1, VOCABULARY, tokens().shape, generator=torch.Generator().manual_seed(3)
    )  # fmt: skip
    answers = [torch.tensor([i]) for i in range(len(clean))]
    dataset = PromptDataset(clean, (clean + shift) % VOCABULARY, answers, answers)
    return PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=len(clean))


def screened_effects(
    engine: str, precision: PrecisionConfig, most: int, exact: bool = False, **changes: Any
) -> dict[Edge, float]:
    """Effects of removing single edges of an FP64 model, evenly drawn."""
    model = patchable(transformer(dtype=torch.float64, **changes))
    edges = canonical_edges(model)
    edges = edges[:: max(1, len(edges) // most)]
    with borrowed(model), ExitStack() as stack:
        prompts = collect_batches(model, everywhere_different(), None)
        metric = resolve_metric("kl_div", VOCABULARY)
        task = Question(model, everywhere_different(), prompts, AblationType.RESAMPLE, metric)
        made = make_engine(replace(task, engine=engine), precision, stack)
        assert made.name == engine and made.screens
        return {edge: made.effects([edge], [False], exact=exact)[0] for edge in edges}


def values_of(part: Any, low: str, policy: Any) -> PrecisionConfig:
    return PrecisionConfig(low=low, mlp="fp32", parts=(part,), operands="values", policy=policy)


@pytest.mark.parametrize(("low", "policy"), [("int8", "uniform"), ("fp8_e4m3", "investigated_head")])
@pytest.mark.parametrize("part", ["scores", "values", "unembed"])
@pytest.mark.parametrize("kind", MODELS)
def test_both_engines_round_the_same_operands(kind: str, part: str, low: str, policy: Any) -> None:
    """With one head a layer and prompts that differ everywhere, all heads from an edge's own one on
    change at every position, so that both engines round exactly the same; the unembedding is rounded
    behind any edge. Edges into an MLP or the output are another matter: the host's forward of that
    block rounds its head, too, which the edge cannot reach."""
    precision = values_of(part, low, policy)
    arguments = {"n_heads": 1, "n_layers": 3, **MODELS[kind]}
    host, quick = (screened_effects(e, precision, 40, **arguments) for e in ("host", "incremental"))
    exact = screened_effects("incremental", precision, 40, exact=True, **arguments)
    compared = [e for e in exact if part == "unembed" or graph.kind(e.dest) == "head"]
    for edge in compared:
        assert quick[edge] == pytest.approx(host[edge], rel=1e-9, abs=1e-12), edge.name
    off = [abs(quick[edge] - exact[edge]) > 1e-6 * abs(exact[edge]) for edge in compared]
    assert sum(off) >= 9  # or nothing was rounded; those of the last block's heads may be exact


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", MODELS)
def test_the_unembedding_of_many_heads_is_rounded_alike(kind: str, low: str) -> None:
    precision = values_of("unembed", low, "investigated_head")
    arguments = MODELS[kind]
    host, quick = (screened_effects(e, precision, 30, **arguments) for e in ("host", "incremental"))
    assert list(quick.values()) == pytest.approx(list(host.values()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("part", ["scores", "values"])
@pytest.mark.parametrize("kind", MODELS)
def test_with_many_heads_errors_are_of_the_same_size(kind: str, part: str, low: str) -> None:
    """Heads that an edge cannot reach are rounded by the host's forward and stay exact here, so that
    effects differ by about what rounding costs. It must not cost more here; a factor of two is for the
    spread of a root mean square over 30 edges."""
    precision = values_of(part, low, "uniform")
    arguments = MODELS[kind]
    host, quick = (screened_effects(e, precision, 30, **arguments) for e in ("host", "incremental"))
    exact = screened_effects("incremental", precision, 30, exact=True, **arguments)
    scale = max(map(abs, exact.values()))
    errors = [
        fmean(((found[edge] - exact[edge]) / scale) ** 2 for edge in exact) ** 0.5
        for found in (quick, host)
    ]
    assert 0 < errors[0] <= 2 * errors[1] and errors[1] < 0.1
