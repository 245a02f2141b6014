"""PAHQ for auto-circuit: the circuit that FP32 ACDC finds, by estimates or screened in mixed precision.

Importing this package changes nothing in the host and loads nothing heavy; names are looked up on
first use. ``register()`` adds the methods to the host's tables.

Shapes are written ``[candidate batch pos head d_head]`` and the like, here and in all docstrings; the
axes that a tensor has always stand in the order ``candidate batch pos head d_head | d_model`` (the last
one either of the two, or one of those below).

=============  ====================================================================================
candidate      edges tested in one pass: row 0 is the present state, row i the i-th candidate's
batch          prompts of one loader batch; ``prompt`` where one number per prompt is left
pos            token positions of a prompt; ``q_pos`` and ``k_pos`` where two of them meet
head           attention heads of one layer, queries' heads where keys have fewer (grouped query)
d_head         width of one head's query, key, value or value mix
d_model        width of the residual stream
d_mlp          width of an MLP's hidden layer
vocab          logits, one per token of the output vocabulary
layer          transformer blocks, in order of execution
src            source nodes: the embedding, head outputs, MLP outputs
dest           destination nodes: head inputs (Q, K, V apart or as one), MLP inputs, the output
=============  ====================================================================================

Weights follow TransformerLens: ``W_Q``, ``W_K``, ``W_V`` are ``[head d_model d_head]`` and ``W_O``
is ``[head d_head d_model]``.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pahq_plugin.discovery.discover import discover
    from pahq_plugin.discovery.host_algorithm import HostAlgorithm
    from pahq_plugin.discovery.method import Method, ScoringMethod
    from pahq_plugin.discovery.methods import methods
    from pahq_plugin.discovery.register import register
    from pahq_plugin.engines.question import Question
    from pahq_plugin.errors import PahqError, PahqWarning
    from pahq_plugin.host.patching import source_outputs
    from pahq_plugin.models.adapt import adapt
    from pahq_plugin.models.hugging_face import from_hugging_face
    from pahq_plugin.models.on_disk import open_model, save_model
    from pahq_plugin.precision.backend import Backend, mixed_precision
    from pahq_plugin.precision.config import PrecisionConfig
    from pahq_plugin.precision.formats import NumberFormat
    from pahq_plugin.problems import Problem, load_problem
    from pahq_plugin.results.decision import Decision
    from pahq_plugin.results.result import Discovery

_HOMES = {
    "Backend": "precision.backend",
    "mixed_precision": "precision.backend",
    "NumberFormat": "precision.formats",
    "PrecisionConfig": "precision.config",
    "discover": "discovery.discover",
    "PahqError": "errors",
    "PahqWarning": "errors",
    "adapt": "models.adapt",
    "open_model": "models.on_disk",
    "save_model": "models.on_disk",
    "source_outputs": "host.patching",
    "from_hugging_face": "models.hugging_face",
    "methods": "discovery.methods",
    "Method": "discovery.method",
    "ScoringMethod": "discovery.method",
    "HostAlgorithm": "discovery.host_algorithm",
    "Question": "engines.question",
    "register": "discovery.register",
    "Decision": "results.decision",
    "Discovery": "results.result",
    "Problem": "problems",
    "load_problem": "problems",
}

__all__ = [
    "Backend",
    "Decision",
    "Discovery",
    "HostAlgorithm",
    "Method",
    "NumberFormat",
    "PahqError",
    "PahqWarning",
    "PrecisionConfig",
    "Problem",
    "Question",
    "ScoringMethod",
    "adapt",
    "discover",
    "from_hugging_face",
    "load_problem",
    "methods",
    "mixed_precision",
    "open_model",
    "register",
    "save_model",
    "source_outputs",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet unless an application asks


if not TYPE_CHECKING:  # to a type checker a misspelt name would have a type, too

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
