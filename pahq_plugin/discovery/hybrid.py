"""The hybrid policy: formats per block and part, chosen by what each costs in accuracy.

The PAHQ paper (arXiv 2510.23264) names hybrid formats and finding critical components automatically as
future work. Here both come from one calibration on the model and prompts at hand:

1. On a seeded sample of edges that matter, measure the effect in FP32, and once more with a single part
   of a single block in few bits. The *error* of that part is the root mean square over the sample of
   ``|low - exact| / max(|exact|, threshold)``.
2. Start with every part in its configured format. Errors of different parts are roundings independent
   of each other, so their squares add up. As long as the root of the sum exceeds the budget, the part
   with the largest error gets the next wider format: 16 bits, then FP32.
3. Measure the error of the whole assignment, and go on if it exceeds the budget after all.

The errors say which components are critical; they are kept in the run's statistics.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pahq_plugin.engines.protocol import Engine
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import Edge
from pahq_plugin.precision.config import DEFAULT_BUDGET, UNEMBED, PrecisionConfig
from pahq_plugin.precision.formats import get_format

log = logging.getLogger(__name__)

SAMPLE = 8
"""Edges whose effects are measured."""

DRAWN = 64
"""Edges that are looked at to find them."""

WIDER = {8: "bf16", 16: "fp32"}
"""The next wider format after one of so many bits."""

ErrorOf = Callable[[dict[str, str]], float]
"""From formats by part, all other parts in FP32, to their error."""


@dataclass(frozen=True)
class Assignment:
    """What the calibration chose.

    Attributes:
        formats: by part, for example ``{"blocks.0.qkv": "int8"}``.
        errors: of each part in its configured format, alone.
        error: of the whole assignment, measured.
    """

    formats: dict[str, str]
    errors: dict[str, float]
    error: float


def calibrate(
    engine: Engine,
    edges: Sequence[Edge],
    precision: PrecisionConfig,
    cfg: Any,
    threshold: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[PrecisionConfig, Assignment]:
    """Choose formats for ``precision`` and let ``engine`` screen with them.

    Args:
        engine: from which no edge has been removed.
        edges: all edges of the model.
        precision: of the ``"hybrid"`` policy.
        cfg: the model's configuration.
        threshold: of the search.
        seed: chooses the sample.
        progress: told how many parts of how many are measured.

    Raises:
        ConfigError: no assignment with a part in few bits meets the budget.
    """
    sample = _sample(engine, edges, seed)

    def error_of(formats: dict[str, str]) -> float:
        engine.screen_with(_with_formats(precision, formats))
        off = [
            (engine.effects([edge], [False], exact=False)[0] - exact) / max(abs(exact), threshold)
            for edge, exact in sample
        ]
        return math.sqrt(sum(error**2 for error in off) / max(1, len(off)))

    budget = DEFAULT_BUDGET if precision.budget is None else precision.budget
    assignment = assign(configured(precision, cfg), error_of, budget, progress)
    chosen = _with_formats(precision, assignment.formats)
    engine.screen_with(chosen)
    log.info("hybrid: error %.2g of a budget of %.2g", assignment.error, budget)
    return chosen, assignment


def _with_formats(precision: PrecisionConfig, formats: dict[str, str]) -> PrecisionConfig:
    """``precision`` with these parts in few bits and no others; int4 weights go with parts in int8."""
    weights = precision.weights if "int8" in formats.values() else None
    return replace(precision, low="fp32", mlp="fp32", formats=formats, weights=weights)


def configured(precision: PrecisionConfig, cfg: Any) -> dict[str, str]:
    """Every part that ``precision`` puts in few bits, with its format."""
    per_block = ["qkv", "output", "scores", "values"] + ([] if cfg.attn_only else ["mlp"])
    named = [(f"blocks.{i}.{part}", part, i) for i in range(cfg.n_layers) for part in per_block]
    formats = {name: precision.format_of(part, layer) for name, part, layer in named}
    formats[UNEMBED] = precision.format_of(UNEMBED)
    return {name: used.name for name, used in formats.items() if used.is_low}


def assign(
    formats: dict[str, str],
    error_of: ErrorOf,
    budget: float,
    progress: Callable[[int, int], None] | None = None,
) -> Assignment:
    """Widen the formats of the parts with the largest errors until what is left meets the budget.

    Args:
        formats: the configured ones, by part.
        error_of: measures an assignment.
        budget: what its error may be.
        progress: told how many parts of how many are measured.

    Raises:
        ConfigError: nothing in few bits is left.
    """
    errors = {}
    for done, (part, name) in enumerate(formats.items()):
        errors[part] = error_of({part: name})
        if progress is not None:
            progress(done + 1, len(formats))
    chosen, left = dict(formats), dict(errors)
    while left:
        if math.sqrt(sum(error**2 for error in left.values())) <= budget:
            total = error_of(chosen)
            if total <= budget:
                return Assignment(chosen, errors, total)
        worst = max(left, key=lambda part: left[part])
        chosen[worst] = WIDER[get_format(chosen[worst]).bits]
        if get_format(chosen[worst]).is_low:
            left[worst] = error_of({worst: chosen[worst]})
        else:
            del left[worst]
    least = min(errors, key=lambda part: errors[part], default=None)
    smallest = "" if least is None else f"; the smallest error is that of {least}, {errors[least]:.2g}"
    raise ConfigError(
        f"budget={budget:g}: no part can be in few bits within it{smallest}; raise the budget, "
        "or use method 'acdc'"
    )


def _sample(engine: Engine, edges: Sequence[Edge], seed: int) -> list[tuple[Edge, float]]:
    """Edges with effects, those of removing each alone."""
    drawn = random.Random(seed).sample(list(edges), min(DRAWN, len(edges)))
    measured = ((edge, engine.effects([edge], [False], exact=True)[0]) for edge in drawn)
    found = sorted(((edge, e) for edge, e in measured if e), key=lambda pair: -abs(pair[1]))
    return found[:SAMPLE]
