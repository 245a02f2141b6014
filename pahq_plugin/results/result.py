"""What a discovery found: decisions, circuit, prune scores, and their files.

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
from pahq_plugin.host import (
    Edge,
    PatchableModel,
    PruneScores,
)
from pahq_plugin.host.graph import find_edge
from pahq_plugin.models.checks import check_patchable
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
from pahq_plugin.results.searched import Searched as Searched
from pahq_plugin.results.searched import model_name as model_name
from pahq_plugin.results.stats import Stats as Stats
from pahq_plugin.results.terminal import record_view, summary
from pahq_plugin.system.files import installed_version, write_text

if TYPE_CHECKING:
    import networkx
    import pandas


PACKAGES = ("pahq-plugin", "auto-circuit", "transformer-lens", "torch", "numpy")


SHOWN = 20
"""Edges of a table where nothing else is said."""


@dataclass(frozen=True, repr=False)
class Discovery:
    """A circuit and how it was found.

    It shows itself as one line; as a table where rich prints it (``rich.print(result)``) and in
    notebooks.

    Attributes:
        decisions: one per edge, in the order taken.
        settings: method, threshold, metric, ablation, precision and so on, as JSON values.
        stats: what the run cost.
        model: the model the edges belong to.
        searched: which model that was when it was searched; ``None`` for as it is now.
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
        an FP64 model), always finite and not 0 for a kept edge. Where rounding to that dtype would tie
        a removed edge with the weakest kept one, the removed edge gets the next smaller number.
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
        """The strongest kept edges, the largest effect (or score) by magnitude first.

        These are the rows of the table that ``pahq show`` prints, and in the same order.

        Raises:
            ConfigError: ``count`` is no number of edges.
        """
        if type(count) is not int or count < 0:
            raise ConfigError(f"top({count!r}): count must be an integer of at least 0")
        return tuple(strongest(self.decisions)[:count])

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row an edge, in the order decided.

        Columns: ``edge``, its ``src`` and ``dest`` nodes, ``seq_idx`` (missing where edges have no
        position), ``effect``, ``kept``, ``exact``, and ``score``, the prune score.
        """
        return data_frame(self.decisions, self._scores())

    def to_networkx(self, whole: bool = False) -> networkx.MultiDiGraph[str]:
        """The circuit as a directed graph of heads, MLPs, input and output.

        Q, K and V of a head are inputs of one node, as in ``pahq show``, so that paths lead through
        it; several edges may therefore join two nodes. Nodes have the attributes ``kind`` (head, mlp,
        input, output, other), ``block`` and ``head``; edges ``edge``, ``slot`` (Q, K or V),
        ``seq_idx``, ``effect``, ``kept``, ``exact`` and ``score``, and the edge's label as their key.
        An attribute that does not apply is left out.

        Args:
            whole: whether removed edges are in the graph, too.
        """
        return node_graph(self.decisions, self._scores(), self.settings, whole)

    def diff(self, other: Discovery) -> Difference:
        """What this result and another one of the same graph have in common and what not.

        Raises:
            ConfigError: ``other`` is no result.
            ResultError: the results are of different graphs.
        """
        if not isinstance(other, Discovery):
            raise ConfigError(f"diff({type(other).__name__}): compare with another Discovery")
        return difference(self.decisions, other.decisions, (self.settings, other.settings))

    def _shown(self) -> dict[str, Any]:
        """The part of `record` that is shown; the digest, which reads every weight, is left out."""
        return {
            "model": {"name": model_name(self.model)},
            "settings": self.settings,
            "decisions": [entry(decision) for decision in self.decisions],
        }

    def _scores(self) -> list[float]:
        """The prune score of each decision's edge."""
        scores = self.prune_scores
        return [float(decision.edge.prune_score(scores)) for decision in self.decisions]

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write ``result.json`` and ``run.json`` into the folder ``path`` and return it.

        Args:
            path: the folder; one that holds this result already is written again.
            force: whether another result that is there is replaced.

        Raises:
            ResultError: the folder holds another result, or one that cannot be read, or is a file.
        """
        folder, text = Path(path), record_text(self.record())
        _check_place(folder, text, force)
        return self._write(folder, text)

    def _write(self, folder: Path, text: str) -> Path:
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

        A folder that holds no result yet gets this one, so that it can be uploaded as it is.

        Args:
            path: the folder.
            measures: numbers that judge the circuit, such as ``{"faithfulness": 0.96}``, by name.
            license: of the result, as the hub names it, such as ``mit``; ``None`` leaves it open.
            base_model: name on the hub of the model; ``None`` for the model's own, if it is one.
            force: whether a result and a ``README.md`` that are there are replaced.

        Raises:
            ConfigError: there is a ``README.md``, or an argument that no card can hold.
            ResultError: the folder holds another result, or one that cannot be read, or is a file.
        """
        folder, own = Path(path), self.record()
        text = record_text(own)
        _check_place(folder, text, force)
        check_card_place(folder, force)  # nothing is saved if the card cannot be written
        card_text(own, measures or {}, license, base_model)
        if force or not (folder / RESULT_FILE).is_file():
            self._write(folder, text)
        return write_card(folder, measures=measures, license=license, base_model=base_model, force=force)

    @staticmethod
    def load(path: str | Path, model: PatchableModel) -> Discovery:
        """Read a saved result.

        Args:
            path: the folder, or its ``result.json``.
            model: the model it was found on; edges are looked up in it.

        Raises:
            ResultError: no such file, a damaged one, or one of another model: of other weights or edges,
                or of the same weights in another configuration (told by ``run.json``).
            ModelError: ``model`` is none whose edges can be patched.
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
        return Discovery(decisions, record["settings"], _stats(file.parent), model, searched)

    def record(self) -> dict[str, Any]:
        """The content of ``result.json``: settings, model and decisions as JSON values."""
        searched = self.searched or Searched.of(self.model)
        return {
            "schema": SCHEMA,
            "model": {
                "name": searched.name,
                "digest": searched.digest,
                "edges": searched.edges,
            },
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


def _stats(folder: Path) -> Stats:
    return Stats(**read_stats(folder))


def _check_place(folder: Path, text: str, force: bool) -> None:
    """
    Raises:
        ResultError: a file, or a folder with another result or one that cannot be read.
    """
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
