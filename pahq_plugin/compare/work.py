"""The work of one process: a search, or the judging of one method's circuits.

A finished piece of work is one folder or file that appears atomically, by a rename. A killed process
leaves only hidden temporary files, which are never read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pahq_plugin.compare.baselines import get_baseline
from pahq_plugin.compare.files import read_search
from pahq_plugin.compare.plan import (
    PROBLEM_SETTINGS,
    Search,
    digest_of,
    file_digest,
    folder_digest,
    slug,
)
from pahq_plugin.errors import ConfigError, ModelError, PromptError, ResultError
from pahq_plugin.results.decision import Decision, SavedEdge, saved_decisions, saved_edge
from pahq_plugin.results.files import RESULT_FILE, RUN_FILE, read_record, read_stats
from pahq_plugin.system.files import write_text

if TYPE_CHECKING:
    from pahq_plugin.results.result import Discovery

SEARCH_FILE = "search.json"
SEARCH_FILES = (RESULT_FILE, RUN_FILE, SEARCH_FILE)
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""MIB's circuit sizes as shares of all edges; the tenth, all of them, is known by definition."""


@dataclass(frozen=True)
class Judgement:
    """One method's circuits on one problem and seed, to be run on held-out prompts.

    Attributes:
        searches: the method's searches, one per threshold; one for a method that ranks edges.
        sizes: (threshold, size of the FP32 circuit there) at which a ranking is cut.
        test_batches: held-out batches; ``None`` for all.
        evidence: digest of the searches' results.
    """

    searches: tuple[Search, ...]
    sizes: tuple[tuple[float, int], ...]
    test_batches: int | None
    evidence: str

    @property
    def about(self) -> dict[str, Any]:
        """Problem, method and seed, as its file names them."""
        first = self.searches[0]
        return {"problem": first.problem.label, "method": first.method, "seed": first.seed}

    @property
    def file(self) -> str:
        """Name of its file, unique for everything that the judgement depends on."""
        keys = [search.key() for search in self.searches]
        digest = digest_of([keys, self.sizes, self.test_batches, self.evidence])
        return f"{slug('{problem} {method} seed {seed}'.format(**self.about))}-{digest}.json"

    @property
    def label(self) -> str:
        """Readable name."""
        return "circuits of {method} on {problem}, seed {seed}".format(**self.about)


def find(search: Search, folder: Path, threads: int) -> None:
    """Run a search and save its result and cost in ``folder / search.folder``."""
    import torch

    from pahq_plugin.compare.held_out import has_answers
    from pahq_plugin.discovery.cost import forward_seconds
    from pahq_plugin.discovery.discover import discover
    from pahq_plugin.host.algorithms import SWEEPS
    from pahq_plugin.host.prompts import collect_batches
    from pahq_plugin.system.meter import memory_above

    torch.set_num_threads(threads)
    problem = _load(search)
    baseline = get_baseline(search.method)
    if baseline.needs_true_edges and problem.true_edges is None:
        raise ConfigError(f"no published circuit is known for {search.problem.label}")
    if baseline.method.key in SWEEPS and search.batches != 1 and len(problem.train_loader) > 1:
        raise ConfigError(f"{search.method} searches with the first batch only; set batches to 1")
    model, batches = problem.model, collect_batches(problem.model, problem.train_loader, search.batches)
    forward_seconds(model, batches)  # one-time costs are charged to no method
    answered = has_answers(batches, model.cfg.d_vocab_out)
    method = baseline.fitted(problem.metric, search.threshold, answered, search.options)
    arguments: dict[str, Any] = {}
    if "threshold" in method.uses:
        arguments["threshold"] = search.threshold
    if "metric" in method.uses and method.default_metric is None:
        arguments["metric"] = problem.metric
    if "ablation" in method.uses:
        arguments["ablation"] = search.ablation
    elif search.ablation != "resample":
        raise ConfigError(f"{search.method} supports the ablation resample only")
    with memory_above() as memory:
        result = discover(
            model,
            problem.train_loader,
            method=method,
            precision=baseline.precision,
            batches=search.batches,
            true_edges=problem.true_edges if "true_edges" in method.uses else None,
            progress=False,
            seed=search.seed,
            **arguments,
        )
    record = {
        "search": search.key(),
        "extra_bytes": memory.above,
        "threads": threads,
        "metric": problem.metric,
        "options": dict(method.options),
    }
    _save_whole(result, record, folder / search.folder)


def _save_whole(result: Discovery, record: dict[str, Any], there: Path) -> None:
    """Write a result and its search; the folder ``there`` appears with all its files at once."""
    there.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=there.parent))
    try:
        result.save(temporary)
        write_text(temporary / SEARCH_FILE, json.dumps(record, indent=1) + "\n")
        os.rename(temporary, there)
    except OSError as error:
        if not there.exists():
            raise
        if not all((there / name).is_file() for name in SEARCH_FILES):  # else another process was first
            raise ResultError(f"{there} is damaged; delete it and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def judge(judgement: Judgement, found: Path, folder: Path, threads: int) -> None:
    """Run the circuits of a method on held-out prompts and save the measures of each prompt."""
    import torch

    from pahq_plugin.compare.held_out import MEASURES, judging
    from pahq_plugin.discovery.checks import ablation_type
    from pahq_plugin.host.graph import find_edge
    from pahq_plugin.host.prompts import collect_batches, loader_of
    from pahq_plugin.metrics import METRICS

    torch.set_num_threads(threads)
    first = judgement.searches[0]
    problem = _load(first)
    model, true, loader = problem.model, problem.true_edges, problem.test_loader
    if judgement.test_batches is not None and judgement.test_batches < len(loader):
        loader = loader_of(collect_batches(model, loader, judgement.test_batches), loader)
    circuits: list[dict[str, Any]] = []
    with judging(model, loader, ablation_type(first.ablation), METRICS[problem.metric]) as borrowed:
        for threshold, names in chosen_circuits(judgement, found, len(model.edges)):
            circuit = {find_edge(model, name, position) for name, position in names}
            entry = {"threshold": threshold, "size": len(circuit), "inside": borrowed.run(circuit)}
            if threshold is not None:
                entry["outside"] = borrowed.run(model.edges - circuit)
            circuits.append(entry)
        record = {
            **judgement.about,
            "metric": problem.metric,
            "edges": len(model.edges),
            "measures": MEASURES if borrowed.answered else MEASURES[:1],
            "whole": borrowed.whole(),
            "empty": borrowed.empty(),
            "circuits": circuits,
            "true_edges": None if true is None else sorted([edge.name, edge.seq_idx] for edge in true),
        }
    write_text(folder / judgement.file, json.dumps(record, allow_nan=False) + "\n")


def chosen_circuits(
    judgement: Judgement, found: Path, n_edges: int
) -> list[tuple[float | None, list[SavedEdge]]]:
    """Return (threshold, edges) of the circuits to judge.

    A search gives one circuit per threshold. A ranking is cut at the size of the FP32 search's circuit
    for each threshold, and at `SHARES` of the edges.
    """
    found_by = [saved_decisions(read_record(found / s.folder / RESULT_FILE)) for s in judgement.searches]
    if get_baseline(judgement.searches[0].method).sweeps:
        return [
            (search.threshold, [saved_edge(d.edge) for d in decisions if d.kept])
            for search, decisions in zip(judgement.searches, found_by, strict=True)
        ]
    ranking = found_by[0]
    wanted: list[tuple[float | None, int]] = [*judgement.sizes]
    wanted += [(None, size) for size in sorted({round(share * n_edges) for share in SHARES})]
    return [(threshold, cut(ranking, size)) for threshold, size in wanted]


def cut(ranking: Sequence[Decision], size: int) -> list[SavedEdge]:
    """Return the ``size`` edges of largest |score|, and those that tie with the last of them.

    Edges with a score of 0 are never taken, even if fewer than ``size`` remain.
    """
    least = abs(ranking[size - 1].effect) if size else float("inf")
    return [saved_edge(d.edge) for d in ranking if abs(d.effect) >= max(least, 5e-324)]


def cost(folder: Path) -> dict[str, Any]:
    """Return the cost of a search: its stats and the content of its ``search.json``."""
    if not (folder / RUN_FILE).is_file():
        raise ResultError(f"{folder / RUN_FILE} is missing; delete {folder} and run again")
    return read_stats(folder) | read_search(folder / SEARCH_FILE)


def _load(search: Search) -> Any:
    from pahq_plugin.problems import load_problem

    given = search.problem
    settings = {name: getattr(given, name) for name in PROBLEM_SETTINGS}
    problem = load_problem(**settings, seed=search.seed)
    if given.prompts and file_digest(given.prompts) != given.content:
        raise PromptError(f"{given.prompts} was changed while the comparison ran; start it again")
    if given.model and folder_digest(given.model) != given.model_content:
        raise ModelError(f"{given.model} was changed while the comparison ran; start it again")
    return problem
