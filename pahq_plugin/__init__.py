"""PAHQ for auto-circuit: the circuit that FP32 ACDC finds, screened in mixed precision.

Importing this package changes nothing in the host and loads nothing heavy; names are looked up on
first use. ``register()`` adds the methods to the host's tables.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pahq_plugin.backend import Backend, mixed_precision
    from pahq_plugin.catalogue import methods
    from pahq_plugin.config import PrecisionConfig
    from pahq_plugin.discovery import discover
    from pahq_plugin.errors import PahqError, PahqWarning
    from pahq_plugin.host.adapt import adapt
    from pahq_plugin.host.hugging_face import from_hugging_face
    from pahq_plugin.host.stored import open_model, save_model
    from pahq_plugin.registry import register
    from pahq_plugin.result import Decision, Discovery
    from pahq_plugin.zoo import Problem, load_problem

_HOMES = {
    "Backend": "backend",
    "mixed_precision": "backend",
    "PrecisionConfig": "config",
    "discover": "discovery",
    "PahqError": "errors",
    "PahqWarning": "errors",
    "adapt": "host.adapt",
    "open_model": "host.stored",
    "save_model": "host.stored",
    "from_hugging_face": "host.hugging_face",
    "methods": "catalogue",
    "register": "registry",
    "Decision": "result",
    "Discovery": "result",
    "Problem": "zoo",
    "load_problem": "zoo",
}

__all__ = [
    "Backend",
    "Decision",
    "Discovery",
    "PahqError",
    "PahqWarning",
    "PrecisionConfig",
    "Problem",
    "adapt",
    "discover",
    "from_hugging_face",
    "load_problem",
    "methods",
    "mixed_precision",
    "open_model",
    "register",
    "save_model",
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
