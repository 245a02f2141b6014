"""Arguments of a search that are refused before it starts."""

from __future__ import annotations

from typing import Any

import pytest

from pahq_plugin.discovery.checks import ablation_type, check_circuit_size
from pahq_plugin.discovery.discover import discover
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import AblationType
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"checkpoint": 5}, "int"),
        ({"checkpoint": b"c"}, "bytes"),
        ({"checkpoint_every": "a"}, "checkpoint_every='a'"),
        ({"checkpoint_every": -1.0}, "checkpoint_every=-1.0"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every=nan"),
    ],
)
def test_what_is_no_checkpoint(settings: dict[str, Any], word: str) -> None:
    with refused(ConfigError, word):
        discover(small_model(), loader(), progress=False, **settings)


@pytest.mark.parametrize("kind", list(AblationType), ids=lambda kind: kind.name)
def test_ablations_are_named_in_any_case(kind: AblationType) -> None:
    assert ablation_type(kind) is kind
    assert ablation_type(kind.name.lower()) is ablation_type(kind.name) is kind


def test_circuits_have_from_no_to_all_edges() -> None:
    for n_edges in (0, 7):
        check_circuit_size(n_edges, 7)
    with refused(ConfigError, "n_edges=8"):
        check_circuit_size(8, 7)
