"""The methods that ``method=`` takes, as frozen records: what runs, and which arguments it can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pahq_plugin.config import FULL_PRECISION, PAPER_PRECISION, RTN_PRECISION, PrecisionConfig
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.algorithms import host_keys

Kind = Literal["search", "attribution", "integrated", "host"]

USES: dict[Kind, frozenset[str]] = {
    "search": frozenset(
        {"threshold", "metric", "ablation", "engine", "order", "batches", "checkpoint", "max_memory"}
    ),
    "attribution": frozenset({"ablation", "batches", "n_edges"}),
    "integrated": frozenset({"ablation", "batches", "n_edges"}),
    "host": frozenset({"batches", "n_edges", "true_edges"}),
}
"""Arguments of ``discover`` that each kind of method can use."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: its key.
        title: a few words for tables.
        kind: ``"search"`` tests edge after edge; the others score all edges at once.
        precision: its fixed precision; ``None`` where the user chooses or there is none to choose.
        key: of a host algorithm, its key in the host's ``PRUNE_ALGO_DICT``.
        options: arguments of the host's function to change, such as its number of epochs.
    """

    name: str
    title: str
    kind: Kind
    precision: PrecisionConfig | None = None
    key: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_heads(self) -> bool:
        """Whether it works on transformers only: it chooses the precision of heads, or starts a
        forward behind the embedding."""
        return self.kind == "integrated" or (
            self.kind == "search" and self.precision is not FULL_PRECISION
        )

    @property
    def uses(self) -> frozenset[str]:
        """Arguments of ``discover`` that it can use."""
        chooses = self.kind == "search" and self.precision is None
        return USES[self.kind] | ({"precision"} if chooses else frozenset())


OWN_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("pahq", "PAHQ with FP32 decisions", "search"),
        Method("pahq-paper", "PAHQ as in the paper", "search", PAPER_PRECISION),
        Method("rtn-q", "ACDC in round-to-nearest E4M3", "search", RTN_PRECISION),
        Method("acdc", "ACDC in FP32", "search", FULL_PRECISION),
        Method("eap", "edge attribution patching", "attribution"),
        Method("eap-ig", "EAP with integrated gradients", "integrated"),
    )
}


def methods() -> tuple[str, ...]:
    """Names that ``method=`` takes: ours, then every key of the host's ``PRUNE_ALGO_DICT``."""
    return (*OWN_METHODS, *(key for key in host_keys() if key not in OWN_METHODS))


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: no such method; the message lists the known ones.
    """
    if isinstance(name, str) and name in OWN_METHODS:
        return OWN_METHODS[name]
    if isinstance(name, str) and name in host_keys():
        return Method(name, name, "host", key=name)
    raise ConfigError(f"unknown method {name!r}; known: {', '.join(methods())}")


def refuse_unused(method: Method, given: dict[str, bool]) -> None:
    """
    Raises:
        ConfigError: an argument was given that ``method`` cannot use.
    """
    for argument, is_given in given.items():
        if is_given and argument not in method.uses:
            usable = ", ".join(sorted(method.uses))
            raise ConfigError(f"method {method.name!r} cannot use {argument}; it uses {usable}")
