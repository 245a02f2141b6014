"""Hold the result of a discovery: decisions, circuit and prune scores; save and load it.

A result is a folder with two files. ``result.json`` holds the settings, the model's digest and the
decisions in the order taken, and no timings, so that equal runs give equal bytes. ``run.json`` holds
what differs from run to run: seconds, memory, versions.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group

from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.host import Edge, PatchableModel, PruneScores
from pahq_plugin.host.graph import find_edge
from pahq_plugin.models.checks import check_patchable, configuration_digest, model_digest
from pahq_plugin.results.card import card_text, check_card_place, write_card
from pahq_plugin.results.decision import Decision, entry, saved_decisions, saved_edge, strongest
from pahq_plugin.results.difference import Difference, difference
from pahq_plugin.results.files import (
    RESULT_FILE,
    RUN_FILE,
    SCHEMA,
    read_configuration,
    read_record,
    read_stats,
    record_text,
    result_file,
)
from pahq_plugin.results.frames import data_frame, node_graph
from pahq_plugin.results.notebook import result_html
from pahq_plugin.results.terminal import record_view, summary
from pahq_plugin.system.files import installed_version, write_text

if TYPE_CHECKING:
    import networkx
    import pandas

PACKAGES = ("pahq-plugin", "auto-circuit", "transformer-lens", "torch", "numpy")
SHOWN = 20
"""Default number of edges in a table."""


@dataclass
class Stats:
    """The cost of a run.

    Attributes:
        evaluations: patched forwards, one per row of a batch of candidates.
        re_evaluations: edges decided again in FP32 because of the guard band or its monitoring.
        seconds: wall-clock time of the search, without loading the model.
        peak_bytes: peak memory: of the GPU's allocator, or resident memory of the process.
        forward_equivalents: ``seconds`` over the time of one plain forward of the same prompts, in the
            model's own precision.
        guard: relative width, floor and number of widenings of the guard band; empty without a band.
        estimates: where effects were estimated first: the number of edges removed on estimates, of
            gradients taken, and of stages (the heads or the MLP of a layer) that were estimated and that
            were measured edge by edge; empty if nothing is estimated.
        sensitivity: of the hybrid policy, the error of each part in its configured format
            (`pahq_plugin.discovery.hybrid`); empty without one.
        memory: with ``max_memory``, in bytes: the budget, the peak use, all weights, resident weights,
            and weights read from disk or copied to the GPU; empty otherwise.
    """

    evaluations: int = 0
    re_evaluations: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    forward_equivalents: float = 0.0
    guard: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, int] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def add(self, other: Stats) -> None:
        """Add the cost of a run that followed; what is no cost, such as the guard band, is replaced."""
        self.evaluations += other.evaluations
        self.re_evaluations += other.re_evaluations
        self.seconds += other.seconds
        self.forward_equivalents += other.forward_equivalents
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.guard, self.estimates, self.sensitivity = other.guard, other.estimates, other.sensitivity
        self.memory = other.memory


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


@dataclass(frozen=True, repr=False)
class Discovery:
    """A circuit and how it was found.

    Its repr is one line; ``rich.print(result)`` and notebooks show a table.

    Attributes:
        decisions: one per edge, in the order taken.
        settings: method, threshold, metric, ablation, precision and so on, as JSON values.
        stats: the cost of the run.
        model: the model the edges belong to.
        searched: identity of the model when it was searched; ``None`` for its identity now.
    """

    decisions: tuple[Decision, ...]
    settings: Mapping[str, Any]
    stats: Stats
    model: PatchableModel = field(repr=False)
    searched: Searched | None = field(default=None, repr=False, compare=False)

    @cached_property
    def circuit(self) -> set[Edge]:
        """The host edges that were kept."""
        return {decision.edge for decision in self.decisions if decision.kept}

    @cached_property
    def prune_scores(self) -> PruneScores:
        """Host prune scores whose top ``len(circuit)`` by magnitude are the circuit.

        For a search, ``max(effect, 0)``; for a method that scores edges, its scores. FP32 (FP64 for
        an FP64 model), always finite, and nonzero for kept edges. If rounding would tie a removed edge
        with the weakest kept one, the removed edge gets the next smaller number.
        """
        scores = self.model.new_prune_scores()
        dtype = torch.promote_types(next(iter(scores.values())).dtype, torch.float32)
        scores = {name: torch.zeros_like(mask, dtype=dtype) for name, mask in scores.items()}
        signed = bool(self.settings.get("scored"))
        zero, largest = torch.zeros((), dtype=dtype), torch.finfo(dtype).max
        least = float(torch.nextafter(zero, torch.ones_like(zero)))

        def size(decision: Decision) -> float:
            return abs(decision.effect) if signed else decision.effect

        kept = [min(max(size(d), least), largest) for d in self.decisions if d.kept]
        ceiling = torch.tensor(min(kept, default=largest), dtype=dtype)
        below = float(torch.nextafter(ceiling, zero))
        for decision in self.decisions:
            low, high = (least, largest) if decision.kept else (0.0, below)
            value = min(max(size(decision), low), high)
            if signed:
                value = math.copysign(value, decision.effect)
            scores[decision.edge.dest.module_name][decision.edge.patch_idx] = value
        return scores

    def __repr__(self) -> str:
        return f"<Discovery: {summary(self._shown())}>"

    def __rich__(self) -> Group:
        return record_view(self._shown(), asdict(self.stats), SHOWN)

    def _repr_html_(self) -> str:
        return result_html(self._shown(), asdict(self.stats), SHOWN)

    def top(self, count: int = SHOWN) -> tuple[Decision, ...]:
        """Return the strongest kept edges, the largest effect (or score) by magnitude first.

        ``pahq show`` prints the same edges in the same order.

        Raises:
            ConfigError: ``count`` is not an integer of at least 0.
        """
        if type(count) is not int or count < 0:
            raise ConfigError(f"top({count!r}): count must be an integer of at least 0")
        return tuple(strongest(self.decisions)[:count])

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one row per edge, in the order decided.

        Columns: ``edge``, its ``src`` and ``dest`` nodes, ``seq_idx`` (missing where edges have no
        position), ``effect``, ``kept``, ``exact``, and ``score``, the prune score.
        """
        return data_frame(self.decisions, self._scores())

    def to_networkx(self, whole: bool = False) -> networkx.MultiDiGraph[str]:
        """Return the circuit as a directed graph of heads, MLPs, input and output.

        Q, K and V of a head are inputs of one node, as in ``pahq show``, so that paths pass through
        it; several edges may therefore join the same two nodes. Nodes have the attributes ``kind``
        (head, mlp, input, output, other), ``block`` and ``head``; edges have ``edge``, ``slot`` (Q, K
        or V), ``seq_idx``, ``effect``, ``kept``, ``exact`` and ``score``, and the edge's label as their
        key. Attributes that do not apply are omitted.

        Args:
            whole: whether to include removed edges.
        """
        return node_graph(self.decisions, self._scores(), self.settings, whole)

    def diff(self, other: Discovery) -> Difference:
        """Compare this result with another one on the same graph.

        Raises:
            ConfigError: ``other`` is not a `Discovery`.
            ResultError: the results are of different graphs.
        """
        if not isinstance(other, Discovery):
            raise ConfigError(f"diff({type(other).__name__}): compare with another Discovery")
        return difference(self.decisions, other.decisions, (self.settings, other.settings))

    def _shown(self) -> dict[str, Any]:
        """Return the shown part of `record`, without the digest, which reads every weight."""
        return {
            "model": {"name": model_name(self.model)},
            "settings": self.settings,
            "decisions": [entry(decision) for decision in self.decisions],
        }

    def _scores(self) -> list[float]:
        scores = self.prune_scores
        return [float(decision.edge.prune_score(scores)) for decision in self.decisions]

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write ``result.json`` and ``run.json`` into the folder ``path`` and return it.

        Args:
            path: the folder; if it already holds this result, its files are rewritten.
            force: whether to replace another result.

        Raises:
            ResultError: ``path`` is a file, or holds another result or an unreadable one.
        """
        folder, text = Path(path), record_text(self.record())
        _check_place(folder, text, force)
        write_text(folder / RESULT_FILE, text)
        write_text(folder / RUN_FILE, json.dumps(self._run_record(), indent=2) + "\n")
        return folder

    def save_card(
        self,
        path: str | Path,
        *,
        measures: Mapping[str, float] | None = None,
        license: str | None = None,
        base_model: str | None = None,
        force: bool = False,
    ) -> Path:
        """Write ``README.md``, a Hugging Face model card, beside the saved result and return its path.

        The result is saved, too, if the folder holds none yet, so that the folder can be uploaded.

        Args:
            path: the folder.
            measures: evaluation of the circuit by name, such as ``{"faithfulness": 0.96}``.
            license: the hub's name of the result's license, such as ``mit``; ``None`` leaves it open.
            base_model: the model's name on the hub; ``None`` for the model's own name if it is one.
            force: whether to replace an existing result and ``README.md``.

        Raises:
            ConfigError: ``README.md`` exists, or an argument does not fit into a card.
            ResultError: ``path`` is a file, or holds another result or an unreadable one.
        """
        folder, own = Path(path), self.record()
        _check_place(folder, record_text(own), force)
        check_card_place(folder, force)  # nothing is saved if the card cannot be written
        card_text(own, measures or {}, license, base_model)
        if force or not (folder / RESULT_FILE).is_file():
            self.save(folder, force=force)
        return write_card(folder, measures=measures, license=license, base_model=base_model, force=force)

    @staticmethod
    def load(path: str | Path, model: PatchableModel) -> Discovery:
        """Read a saved result.

        Args:
            path: the folder, or its ``result.json``.
            model: the model it was found on.

        Raises:
            ResultError: the file is missing or damaged, or belongs to another model: other weights or
                edges, or the same weights in another configuration (according to ``run.json``).
            ModelError: the edges of ``model`` cannot be patched.
        """
        check_patchable(model)
        file = result_file(path)
        record = read_record(file)
        now, then = Searched.of(model), record["model"]
        if then["digest"] != now.digest:
            raise ResultError(
                f"{file} belongs to another model ({then['name']}, "
                f"{then['edges']} edges): its weights or its graph differ from this one's"
            )
        configuration = read_configuration(file.parent)
        if configuration not in (None, now.configuration):
            raise ResultError(
                f"{file} belongs to these weights in another model: the positions that count, a mask, "
                "an activation function or another part of its configuration differ from this one's"
            )
        searched = Searched(then["name"], then["digest"], then["edges"], configuration)
        decisions = tuple(
            replace(d, edge=find_edge(model, *saved_edge(d.edge)), effect=float(d.effect))
            for d in saved_decisions(record)
        )
        stats = Stats(**read_stats(file.parent))
        return Discovery(decisions, record["settings"], stats, model, searched)

    def record(self) -> dict[str, Any]:
        """Return the content of ``result.json``: settings, model and decisions as JSON values."""
        searched = self.searched or Searched.of(self.model)
        return {
            "schema": SCHEMA,
            "model": {"name": searched.name, "digest": searched.digest, "edges": searched.edges},
            "settings": dict(self.settings),
            "decisions": [entry(decision) for decision in self.decisions],
        }

    def _run_record(self) -> dict[str, Any]:
        searched = self.searched or Searched.of(self.model)
        return {
            "configuration": searched.configuration,
            "stats": asdict(self.stats),
            "device": str(next(self.model.parameters()).device),
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": {name: installed_version(name) for name in PACKAGES},
        }


def _check_place(folder: Path, text: str, force: bool) -> None:
    """Refuse to overwrite a file or another result, with a `ResultError`."""
    if folder.exists() and not folder.is_dir():
        raise ResultError(f"{folder} is a file; a result is saved as a folder")
    there = folder / RESULT_FILE
    if force or not there.is_file():
        return
    try:
        same = read_record(there) == json.loads(text)
    except ResultError as error:
        raise ResultError(f"{error}; name another folder, or replace it with force=True") from error
    if not same:
        raise ResultError(
            f"{folder} holds another result; name another folder, or replace it with force=True"
        )
