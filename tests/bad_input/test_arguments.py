"""Settings, orders, edges and heads that do not exist, or that a method cannot use, are refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, GraphError, PahqError
from tests.helpers.refused import refused_untouched
from tests.helpers.replay import canonical_order
from tests.helpers.searches import discover
from tests.helpers.small import loader, small_model


@pytest.mark.parametrize("method", ["pahq", "acdc"])
def test_a_threshold_out_of_range_is_refused(method: str) -> None:
    model = small_model()
    refused_untouched(
        ConfigError,
        ("threshold",),
        model,
        lambda: discover(model, loader(), method=method, threshold=-0.1),
    )


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    model = small_model()
    words = ("'pahk'", "pahq, pahq-paper", "acdc", "eap-ig", "Subnetwork")
    refused_untouched(ConfigError, words, model, lambda: discover(model, loader(), method="pahk"))


@pytest.mark.parametrize("ablation", [None, 3])
def test_an_ablation_that_is_no_name_is_refused(ablation: Any) -> None:
    model = small_model()
    words = (repr(ablation), "resample")
    refused_untouched(ConfigError, words, model, lambda: discover(model, loader(), ablation=ablation))


def test_every_ablation_name_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        discover(small_model(), loader(), ablation="x")
    assert all(kind.name.lower() in str(caught.value) for kind in AblationType)


@pytest.mark.parametrize("n_edges", [10**6, 2.5, math.nan, "3", True])
def test_a_circuit_size_out_of_range_is_refused(n_edges: Any) -> None:
    model = small_model()
    words = (f"n_edges={n_edges!r}",)
    refused_untouched(
        ConfigError, words, model, lambda: discover(model, loader(), method="eap", n_edges=n_edges)
    )


PRECISION = pahq.PrecisionConfig(low="int8")

UNUSABLE: list[tuple[str, dict[str, Any]]] = [
    *(("acdc", {name: value}) for name, value in
      (("precision", PRECISION), ("prune", True), ("true_edges", set()))),
    ("pahq", {"true_edges": set()}),
    ("pahq-paper", {"precision": PRECISION}),
    ("rtn-q", {"precision": PRECISION}),
    *((method, arguments) for method in ("eap", "eap-ig") for arguments in (
        {"threshold": 0.1}, {"engine": "host"}, {"precision": PRECISION}, {"order": ()},
        {"true_edges": set()})),
    ("acdc", {"steps": 5}),
    ("eap", {"steps": 5}),
    ("eap", {"metric": "mse"}),
    *(("Random", arguments) for arguments in (
        {"threshold": 0.1}, {"metric": "mse"}, {"ablation": "zero"}, {"engine": "host"},
        {"precision": PRECISION}, {"order": ()})),
]  # fmt: skip


@pytest.mark.parametrize(("method", "arguments"), UNUSABLE)
def test_an_argument_that_a_method_cannot_use_is_refused(method: str, arguments: dict[str, Any]) -> None:
    model = small_model()
    (name,) = arguments
    refused_untouched(
        ConfigError,
        (repr(method), name),
        model,
        lambda: discover(model, loader(), method=method, **arguments),
    )


# Edges and heads ----------------------------------------------------------------------------------


def strange_edge(model: PatchableModel) -> Edge:
    edge = canonical_order(model)[0]
    return dataclasses.replace(edge, seq_idx=3)


def test_an_official_circuit_of_another_model_is_refused() -> None:
    model = small_model()
    stranger = strange_edge(model)
    refused_untouched(
        PahqError,
        (stranger.name,),
        model,
        lambda: discover(model, loader(), method="Official Circuit", true_edges={stranger}),
    )


Orders = Callable[[list[Edge]], list[Any]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda edges: [edges[1], *edges[1:]], ("twice",), id="doubled and missing"),
        pytest.param(
            lambda edges: [*edges[:-1], dataclasses.replace(edges[-1], seq_idx=1)],
            ("@1",),
            id="foreign",
        ),
        pytest.param(lambda edges: [], ("0 of 110",), id="none"),
    ],
)
def test_an_order_that_is_no_permutation_is_refused(change: Orders, words: tuple[str, ...]) -> None:
    model = small_model()
    order = canonical_order(model)
    assert len(order) == 110
    changed = change(order)
    refused_untouched(GraphError, words, model, lambda: discover(model, loader(), order=changed))


@pytest.mark.parametrize("target", [(0, 4), (2, 0), (-1, 0), (0, -1), (0, 1, 2), "A0.1"])
def test_a_head_that_does_not_exist_is_refused(target: Any) -> None:
    model = small_model()
    with pahq.mixed_precision(model, PRECISION) as backend, pytest.raises(GraphError) as caught:
        backend.investigate(target)
    assert len(str(caught.value).splitlines()) == 1
    assert str(target[1] if isinstance(target, tuple) else target) in str(caught.value)


def test_an_edge_that_does_not_exist_is_refused() -> None:
    model = small_model()
    edge = strange_edge(model)
    with (
        pahq.mixed_precision(model, PRECISION) as backend,
        pytest.raises(GraphError, match=f"{edge.name} @3"),
    ):
        backend.investigate(edge)
