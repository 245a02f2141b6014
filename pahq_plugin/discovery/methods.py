"""List the methods that ``method=`` accepts by name. A new built-in method is one line here."""

from __future__ import annotations

from pahq_plugin.discovery.attribution import Attribution
from pahq_plugin.discovery.exact import ExactEffects
from pahq_plugin.discovery.host_algorithm import HostAlgorithm
from pahq_plugin.discovery.method import Method
from pahq_plugin.discovery.search import Search
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.algorithms import host_keys
from pahq_plugin.precision.config import FULL_PRECISION, PAPER_PRECISION, RTN_PRECISION
from pahq_plugin.system.plugins import is_reference, referred

OWN_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Search("pahq", "PAHQ with FP32 decisions", estimates=True),
        Search("pahq-paper", "PAHQ as in the paper", PAPER_PRECISION),
        Search("rtn-q", "ACDC in round-to-nearest E4M3", RTN_PRECISION),
        Search("acdc", "ACDC in FP32", FULL_PRECISION),
        ExactEffects("eactp", "edge activation patching"),
        Attribution("eap", "edge attribution patching"),
        Attribution("eap-ig", "EAP with integrated gradients", points="inputs", needs_heads=True),
        Attribution(
            "eap-ig-activations", "EAP-IG over the outputs of each layer in turn",
            points="outputs", needs_heads=True,
        ),
    )
}  # fmt: skip


def methods() -> tuple[str, ...]:
    """Return the names that ``method=`` accepts: ours, then every key of ``PRUNE_ALGO_DICT``."""
    return (*OWN_METHODS, *(key for key in host_keys() if key not in OWN_METHODS))


def get_method(name: str) -> Method:
    """Return the method with this name.

    Args:
        name: one of `methods`, or ``"module:attribute"`` of a `Method` of your own.

    Raises:
        ConfigError: no such method; the message lists the known ones.
    """
    if isinstance(name, str) and name in OWN_METHODS:
        return OWN_METHODS[name]
    if isinstance(name, str) and name in host_keys():
        return HostAlgorithm(name, name)
    if is_reference(name):
        return referred(name, Method)
    raise ConfigError(f"unknown method {name!r}; known: {', '.join(methods())}")
