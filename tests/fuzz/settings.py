"""Values of Python callers: precisions, searches, and the keywords of ``discover``."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from pahq_plugin import discover
from pahq_plugin.choices import POLICIES, STREAMS
from pahq_plugin.engines.question import check_numbers
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import FORMATS
from tests.fuzz.bench import Bench, holds
from tests.fuzz.hostile import VALUES
from tests.fuzz.results import tiny
from tests.fuzz.target import Target
from tests.helpers.small import loader

SECONDS = 3.0
"""Of one search over eight edges, or of one host algorithm."""


class Rude:
    """An object that answers no question."""

    def __repr__(self) -> str:
        return "a\nrude\x1b[31m object"

    __hash__ = None  # type: ignore[assignment]


def one_of(*right: Any) -> st.SearchStrategy[Any]:
    """Mostly right values."""
    good = st.sampled_from(right)
    return st.one_of(*[good] * 9, VALUES, VALUES, st.sampled_from([Rude(), b"\xff"]))


PARTS = {"blocks.0.mlp": "bf16", "unembed": "fp32", "blocks.0.qkv": "int8"}
PRECISIONS = st.fixed_dictionaries(
    {},
    optional={
        "low": one_of(*FORMATS),
        "mlp": one_of(*FORMATS),
        "scale": one_of("row", "head", "tensor", "none"),
        "policy": one_of(*POLICIES),
        "guard": one_of("auto", 0.0, 0.3, float("inf")),
        "parts": one_of(("qkv",), ("qkv", "output"), ("scores", "values", "unembed"), ()),
        "formats": one_of((), PARTS, tuple(PARTS.items()), {"blocks.9.mlp": "bf16"}, {"unembed": []}),
        "weights": one_of(None, "int4"),
        "budget": one_of(None, 0.02),
        "streams": one_of(STREAMS, (), ("low",)),
        "masters": one_of("auto", "device", "host"),
        "operands": one_of("changes", "values"),
        "activations": one_of("low", "high"),
        "kernel": one_of("auto", "eager", "native"),
    },
)
SEARCHES = st.fixed_dictionaries(
    {}, optional={"threshold": one_of(0.01, 1), "batches": one_of(None, 1, 3), "seed": one_of(0, 7)}
)
METHODS = ("pahq", "acdc", "pahq-paper", "rtn-q", "eactp", "eap", "eap-ig", "Random", "Act Mag")
CALLS = st.fixed_dictionaries(
    {"method": one_of(*METHODS)},
    optional={
        "threshold": one_of(0.01, 0.5, 1e-6),
        "metric": one_of(None, "kl_div", "mse", "logit_diff"),
        "ablation": one_of("resample", "zero"),
        "precision": st.one_of(one_of(None), st.just(PrecisionConfig(low="int8", mlp="int8"))),
        "engine": one_of("auto", "incremental", "host"),
        "batches": one_of(None, 1),
        "order": one_of(None),
        "true_edges": one_of(None),
        "n_edges": one_of(None, 3, 0, 8),
        "refine": one_of(None, 2),
        "seed": one_of(0, 1),
    },
)


def check_precision(content: dict[str, Any], bench: Bench) -> None:
    """A precision that is made has a record, a hash, and a format for each part."""
    made = bench.call(PrecisionConfig, **content)
    json.dumps(made.record(), allow_nan=False)
    hash(made)
    holds(all(made.format_of(part, 0).name in FORMATS for part in ("qkv", "mlp", "scores")), "formats")
    holds(made.is_exact in (True, False) and made.only_changes in (True, False), "properties")


def check_search(content: dict[str, Any], bench: Bench) -> None:
    """Numbers of a search that pass are in range."""
    given = {"threshold": 0.01, "batches": 1, "seed": 0} | content
    bench.call(check_numbers, **given)
    holds(0 < given["threshold"] < float("inf") and given["seed"] >= 0, "numbers")


def check_discover(content: dict[str, Any], bench: Bench) -> None:
    """What is found decides every edge once, by a finite effect."""
    found = bench.call(discover, tiny(), prompts(), progress=False, seconds=SECONDS, **content)
    holds({d.edge for d in found.decisions} == tiny().edges, "not every edge was decided")
    holds(len(found.decisions) == len(tiny().edges), "an edge was decided twice")
    for decision in found.decisions:
        holds(abs(decision.effect) < float("inf"), f"effect {decision.effect}")
        if not found.settings["scored"]:
            holds(
                decision.kept == (decision.effect >= found.settings["threshold"]),
                "kept against its effect",
            )
    json.dumps(found.record(), allow_nan=False)


def prompts() -> Any:
    """One batch whose tokens the tiny model knows."""
    made = loader(prompts=4)
    for pair in made.dataset:
        pair.clean.remainder_(8)
        pair.corrupt.remainder_(8)
        pair.answers.remainder_(8)
        pair.wrong_answers.remainder_(8)
    return made


def targets() -> list[Target]:
    """Two configurations, and the call."""
    return [
        Target("precision", PRECISIONS, check_precision),
        Target("search", SEARCHES, check_search, share=0.3),
        Target("discover", CALLS, check_discover, share=0.1, sample=25),
    ]
