"""Identify the model of a result."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_plugin.host import PatchableModel
from pahq_plugin.models.checks import configuration_digest, model_digest


@dataclass(frozen=True)
class Searched:
    """Identity of a model at the time it was searched.

    Attributes:
        name: see `model_name`.
        digest: digest of its edges and weights.
        edges: number of edges.
        configuration: digest of everything else that determines its output; ``None`` if unknown.
    """

    name: str
    digest: str
    edges: int
    configuration: str | None

    @staticmethod
    def of(model: PatchableModel) -> Searched:
        """Identify a model as it is now; this reads every weight."""
        return Searched(
            model_name(model), model_digest(model), len(model.edges), configuration_digest(model)
        )


def model_name(model: PatchableModel) -> str:
    """Return the configured name of a transformer, or the class of any other wrapped model."""
    return (
        getattr(getattr(model.wrapped_model, "cfg", None), "model_name", None)
        or type(model.wrapped_model).__name__
    )
