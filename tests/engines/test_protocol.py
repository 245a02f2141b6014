"""The protocol of engines, and engines of other packages."""

from __future__ import annotations

import pytest

from pahq_exporters.engine import OnnxEngine, factory
from pahq_plugin.engines.incremental.engine import IncrementalEngine
from pahq_plugin.engines.protocol import Engine, engine_factory, engine_names
from pahq_plugin.engines.whole_forward import HostEngine
from pahq_plugin.errors import ConfigError
from tests.helpers.engines import engines
from tests.helpers.fake_engine import FakeEngine


def test_an_engine_is_found_by_its_name_or_where_it_is() -> None:
    assert engine_names() == ["onnx"]
    assert engine_factory("onnx") is factory
    assert engine_factory("tests.helpers.engines:engines") is engines
    with pytest.raises(ConfigError, match="no_such"):
        engine_factory("tests.helpers.engines:no_such")


METHODS = [name for name in vars(Engine) if callable(getattr(Engine, name)) and name[0] != "_"]


@pytest.mark.parametrize("engine", [HostEngine, IncrementalEngine, OnnxEngine, FakeEngine])
def test_every_engine_has_the_methods_of_the_protocol(engine: type) -> None:
    assert len(METHODS) >= 3
    assert [name for name in METHODS if not callable(getattr(engine, name, None))] == []
