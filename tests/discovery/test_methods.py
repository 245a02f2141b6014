"""The names that ``method=`` accepts."""

from __future__ import annotations

import dataclasses

import pytest
from auto_circuit.prune_algos import prune_algos
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT

import pahq_plugin as pahq
from pahq_plugin.discovery.methods import get_method
from pahq_plugin.errors import ConfigError
from tests.helpers.small import loader, small_model

OWN = ["pahq", "pahq-paper", "rtn-q", "acdc", "eactp", "eap", "eap-ig", "eap-ig-activations"]


def test_methods_are_ours_and_every_host_key() -> None:
    host_keys = list(PRUNE_ALGO_DICT)
    assert list(pahq.methods()) == OWN + host_keys
    pahq.register()
    assert list(pahq.methods()) == OWN + host_keys
    late = dataclasses.replace(prune_algos.RANDOM_PRUNE_ALGO, key="Late")
    PRUNE_ALGO_DICT["Late"] = late
    assert pahq.methods()[-1] == "Late"
    assert pahq.discover(small_model(), loader(), method="Late", n_edges=3).circuit


def test_every_name_is_that_of_its_method() -> None:
    assert [get_method(name).name for name in pahq.methods()] == list(pahq.methods())
    assert get_method("Random").key == "Random" and get_method("eap").key == ""
    with pytest.raises(ConfigError, match="'pahk'"):
        get_method("pahk")
