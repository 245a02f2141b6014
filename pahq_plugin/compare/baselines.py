"""Methods of a comparison by name: ours, the host's, and ours in other precisions.

``pahq@FORMAT`` screens heads and MLPs in one number format and re-decides in FP32 near the threshold;
``unguarded@FORMAT`` does not re-decide. Any other name is a key of the host's ``PRUNE_ALGO_DICT``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pahq_plugin.discovery.host_algorithm import HostAlgorithm
from pahq_plugin.discovery.method import Method
from pahq_plugin.discovery.methods import OWN_METHODS, get_method, methods
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.algorithms import NEEDS_TRUE_EDGES, SWEEPS
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import FORMATS
from pahq_plugin.system.plugins import is_reference

Options = Callable[[str, float | None, bool], dict[str, Any]]
"""(problem's metric, threshold, whether answers are token ids) -> arguments of a host algorithm."""


@dataclass(frozen=True)
class Baseline:
    """A method as a comparison runs it.

    Attributes:
        name: its name in plans and tables.
        method: what `pahq_plugin.discovery.discover.discover` runs.
        sweeps: whether it takes a threshold and gives one circuit; others rank all edges.
        precision: precision of the search; ``None`` for the method's own.
        options: arguments of a host algorithm that depend on the problem.
        answers: method for problems whose answers are numbers, not token ids; ``None`` if there is none.
    """

    name: str
    method: Method
    sweeps: bool = False
    precision: PrecisionConfig | None = None
    options: Options = lambda metric, threshold, token_answers: {}
    answers: Method | None = None

    @property
    def needs_true_edges(self) -> bool:
        """Whether it needs a problem with a known circuit."""
        return self.method.key == NEEDS_TRUE_EDGES

    def fitted(
        self, metric: str, threshold: float | None, token_answers: bool, changed: Mapping[str, Any]
    ) -> Method:
        """Return the method with its options for one problem, and those that the plan changes.

        Raises:
            ConfigError: the method needs token ids as answers, or takes no options.
        """
        method = self.method
        reads_answers = method.reads_answers or self.answers is not None
        if not token_answers and not method.searches and reads_answers:
            if self.answers is None:
                raise ConfigError(f"{self.name} differentiates logits of answers; these are numbers")
            method = replace(self.answers, name=method.name)
        options = self.options(metric, threshold, token_answers) | dict(changed)
        if not options:
            return method
        if not isinstance(method, HostAlgorithm):
            raise ConfigError(f"{self.name} is not an algorithm of the host and takes no options")
        return replace(method, options={**method.options, **options})


def _host(key: str, name: str, title: str, **options: Any) -> Method:
    return HostAlgorithm(name, title, key=key, options=options)


def _at_threshold(metric: str, threshold: float | None, token_answers: bool) -> dict[str, Any]:
    """Return arguments that run a host search at one threshold instead of a sweep, with its own loss."""
    return {"tao_bases": [threshold], "tao_exps": [0]}


def _one_threshold(metric: str, threshold: float | None, token_answers: bool) -> dict[str, Any]:
    """Return arguments that run the host's ACDC at one threshold, with the problem's loss."""
    return _at_threshold(metric, threshold, token_answers) | {"faithfulness_target": metric}


_SWEPT: dict[str, Options] = {key: _at_threshold for key in SWEEPS} | {"ACDC": _one_threshold}
"""Options of the host's searches, by key."""


def _target(metric: str, threshold: float | None, token_answers: bool) -> dict[str, Any]:
    """Return the loss of probing; for ``mse`` the host compares with the answers, as numbers."""
    return {"faithfulness_target": "kl_div" if token_answers else metric}


EAP_MSE = _host("Edge Answer Logit MSE Gradient At Clean", "eap", "edge attribution patching (MSE)")
IG_KEY = "Integrated Edge Gradients (Logit Diff)"

_SEARCHES = ("pahq", "acdc", "pahq-paper", "rtn-q")
_BASELINES = [
    *(Baseline(name, OWN_METHODS[name], sweeps=True) for name in _SEARCHES),
    Baseline(
        "host-acdc", _host("ACDC", "host-acdc", "ACDC of the host"), sweeps=True, options=_one_threshold
    ),
    Baseline("eactp", OWN_METHODS["eactp"]),
    Baseline("eap", OWN_METHODS["eap"], answers=EAP_MSE),
    *(Baseline(name, OWN_METHODS[name]) for name in ("eap-ig", "eap-ig-activations")),
    Baseline(
        "ig", _host(IG_KEY, "ig", "integrated gradients"),
        answers=_host(IG_KEY, "ig", "integrated gradients", answer_function="mse"),
    ),
    Baseline(
        "edge-probing", _host("Subnetwork Edge Probing", "edge-probing", "edge probing"), options=_target
    ),
    Baseline(
        "subnetwork-probing",
        _host("Subnetwork Tree Probing", "subnetwork-probing", "subnetwork probing"), options=_target,
    ),
    Baseline("act-mag", _host("Act Mag", "act-mag", "activation magnitude")),
    Baseline("random", _host("Random", "random", "random")),
    Baseline("ground-truth", _host(NEEDS_TRUE_EDGES, "ground-truth", "the published circuit")),
]  # fmt: skip

BASELINES: dict[str, Baseline] = {baseline.name: baseline for baseline in _BASELINES}
EXACT = "acdc"
"""The FP32 search that others are compared with."""

PRECISIONS = ("pahq", "unguarded")


def baseline_names() -> list[str]:
    """Return the names of all baselines, without the host's keys."""
    formats = [name for name in FORMATS if name != "fp32"]
    return [*BASELINES, *(f"{kind}@{name}" for kind in PRECISIONS for name in formats)]


def get_baseline(name: str) -> Baseline:
    """Return the baseline of that name.

    Raises:
        ConfigError: no such method; the message lists the known ones.
    """
    if name in BASELINES:
        return BASELINES[name]
    kind, at, number_format = name.partition("@")
    in_format = number_format in FORMATS or is_reference(number_format)
    if at and kind in PRECISIONS and in_format and number_format != "fp32":
        return _in_format(name, kind, number_format)
    if name in methods() and name not in OWN_METHODS:
        options = _SWEPT.get(name, Baseline.options)
        return Baseline(name, get_method(name), sweeps=name in SWEEPS, options=options)
    if is_reference(name):
        method = get_method(name)
        return Baseline(name, method, sweeps=method.searches)
    raise ConfigError(
        f"unknown method {name!r}; known: {', '.join(baseline_names())}, or a key of the host"
    )


def _in_format(name: str, kind: str, number_format: str) -> Baseline:
    """Return ``pahq`` with heads and MLPs in one format; int4 means 4-bit weights, int8 activations."""
    guard = "auto" if kind == "pahq" else 0.0
    if number_format == "int4":
        precision = PrecisionConfig(low="int8", mlp="int8", weights="int4", guard=guard)
    else:
        precision = PrecisionConfig(low=number_format, mlp=number_format, guard=guard)
    return Baseline(name, OWN_METHODS["pahq"], sweeps=True, precision=precision)
