"""Names and defaults of options are those that the rest of the package accepts."""

from __future__ import annotations

import pahq_plugin as pahq
from pahq_plugin import choices as known
from pahq_plugin.choices import ENGINES
from pahq_plugin.compare.baselines import BASELINES
from pahq_plugin.compare.plan import PROFILES
from pahq_plugin.engines.protocol import engine_names
from pahq_plugin.host import AblationType
from pahq_plugin.metrics import METRICS
from pahq_plugin.precision.formats import FORMATS
from pahq_plugin.problems import problem_names


def test_names_are_those_that_commands_accept() -> None:
    assert list(known.PROBLEMS) == list(problem_names())
    one_word = {name for name in pahq.methods() if " " not in name}
    assert set(known.METHODS) == one_word
    assert set(known.COMPARED) == {*BASELINES, "all"}
    assert set(known.METRICS) == set(METRICS)
    assert set(known.ABLATIONS) == {kind.name.lower() for kind in AblationType}
    assert {*known.ENGINES, "onnx"} == {*ENGINES, *engine_names()}
    assert set(known.FORMATS) == set(FORMATS) - {"int4"}  # of weights alone
    assert set(known.PROFILES) == set(PROFILES)
    for scale in known.SCALES:
        pahq.PrecisionConfig(low="fp8_e4m3", scale=scale)  # type: ignore[arg-type]
    for kernel in known.KERNELS:
        pahq.PrecisionConfig(kernel=kernel)  # type: ignore[arg-type]
