"""Which model a result is of."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_plugin.host import PatchableModel
from pahq_plugin.models.checks import configuration_digest, model_digest


@dataclass(frozen=True)
class Searched:
    """Which model a result is of, as it was when it was searched.

    Attributes:
        name: see `model_name`.
        digest: of its edges and weights.
        edges: how many it has.
        configuration: digest of all else that decides its output; ``None`` where that is not known.
    """

    name: str
    digest: str
    edges: int
    configuration: str | None

    @staticmethod
    def of(model: PatchableModel) -> Searched:
        """The model as it is now; reads every weight."""
        return Searched(
            model_name(model), model_digest(model), len(model.edges), configuration_digest(model)
        )


def model_name(model: PatchableModel) -> str:
    """The configured name of a transformer, else the class of the wrapped model."""
    return (
        getattr(getattr(model.wrapped_model, "cfg", None), "model_name", None)
        or type(model.wrapped_model).__name__
    )
