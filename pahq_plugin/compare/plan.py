"""What to compare: problems, methods, thresholds and seeds, from flags or a TOML file.

A plan is a list of runs, and a run is a grid. Top-level keys of the file are defaults of every run::

    seeds = [0, 1]
    thresholds = [0.001, 0.01]
    problems = ["ioi", { name = "greater-than", batch_size = 16 }]

    [[runs]]
    methods = ["pahq", "acdc", "eap"]

    [[runs]]                      # fewer searches of a slow baseline
    methods = ["host-acdc"]
    seeds = [0]
    thresholds = [0.01]

A file without ``[[runs]]`` is one run. Methods are those of `pahq_plugin.compare.baselines`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from pahq_plugin.engines.question import LARGEST_SEED
from pahq_plugin.errors import ConfigError, one_line
from pahq_plugin.system.files import installed_version

THRESHOLDS = (0.0003, 0.001, 0.003, 0.01, 0.03)
PROFILES = ("reduced", "full")

SETTINGS = ("problems", "methods", "thresholds", "seeds", "batches", "ablation", "options")
PROBLEM_SETTINGS = ("name", "model", "prompts", "batch_size", "positional", "bos")


@dataclass(frozen=True)
class ProblemSpec:
    """Arguments of ``load_problem`` except the seed.

    ``content`` and ``model_content`` are digests of the prompt file and of the model's folder, taken
    when the plan was made.
    """

    name: str
    model: str | None = None
    prompts: str | None = None
    batch_size: int | None = None
    positional: bool = False
    content: str | None = None
    bos: bool | None = None
    model_content: str | None = None

    @property
    def label(self) -> str:
        """The name, with the model and whatever else is not the default."""
        parts = [self.name, self.model or "", Path(self.prompts).stem if self.prompts else ""]
        parts += ["positions" if self.positional else ""]
        parts += [{None: "", True: "BOS", False: "no BOS"}[self.bos]]
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Search:
    """One search by one method: the unit of work, run in its own process.

    Attributes:
        method: a name in `pahq_plugin.compare.baselines`.
        threshold: ``None`` for methods that take none.
        seed: of prompts and method.
        batches: batches of prompts to search with; ``None`` for all.
        ablation: name of a host ablation type.
        options: changed arguments of a host algorithm.
    """

    problem: ProblemSpec
    method: str
    threshold: float | None
    seed: int
    batches: int | None = 1
    ablation: str = "resample"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def key(self) -> dict[str, Any]:
        """Return everything that the result depends on, including contents of files, as JSON values."""
        key: dict[str, Any] = asdict(self) | {"version": installed_version("pahq-plugin")}
        problem = key["problem"]
        problem["prompts"] = problem.pop("content")
        for name in ("bos", "model_content"):  # set by few problems
            if problem[name] is None:
                del problem[name]
        return key

    @property
    def folder(self) -> str:
        """Name of the result's folder: readable, and unique for every `key`."""
        named = [self.problem.label, self.method, f"{self.threshold:g}" if self.threshold else ""]
        name = " ".join(filter(None, [*named, f"seed {self.seed}"]))
        return f"{slug(name)}-{digest_of(self.key())}"

    @property
    def label(self) -> str:
        """Readable name."""
        at = f" at {self.threshold:g}" if self.threshold else ""
        return f"{self.method} on {self.problem.label}{at}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Searches to run, and how they are judged.

    Attributes:
        searches: in the order given, without duplicates.
        test_batches: held-out batches to judge circuits on; ``None`` for all.
        note: a sentence on what was left out, for the report.
    """

    searches: tuple[Search, ...]
    test_batches: int | None = None
    title: str = "Circuits by patching, compared"
    note: str = ""

    @property
    def problems(self) -> list[ProblemSpec]:
        """Problems in the order of first use."""
        return list(dict.fromkeys(search.problem for search in self.searches))

    def record(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "title": self.title,
            "note": self.note,
            "test_batches": self.test_batches,
            "searches": [search.key() for search in self.searches],
        }


def file_digest(file: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def folder_digest(model: str | Path) -> str | None:
    """Hash the model in a folder by the names and contents of its files; ``None`` for a hub name.

    For a folder that ``pahq store`` wrote, ``model.json`` is enough: it holds fingerprints of all
    weights, which are checked when the model is opened.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    files = [folder / "model.json"]
    if not files[0].is_file():
        files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors"))
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16))
        digest.update(file.name.encode() + content.digest())
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Hash a JSON value to ten hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def slug(name: str) -> str:
    """Reduce a name to ASCII letters, digits, dots and dashes, so that it cannot leave a folder."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in name)
    return kept.strip(".-")[:80]


def read_plan(file: Path) -> Plan:
    """Read a plan from a TOML file; prompt files are relative to it.

    Raises:
        ConfigError: unreadable TOML, an unknown key, or a value of the wrong type or range.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # integers of thousands of digits, too
        raise ConfigError(f"{file} is not readable TOML: {one_line(error)}") from error
    try:
        return make_plan(content, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers too long to be shown, lists in lists
        raise ConfigError(f"{file}: {one_line(error)}") from error


def profile(name: str) -> Plan:
    """Return a bundled plan: ``"reduced"`` (minutes) or ``"full"`` (hours).

    Raises:
        ConfigError: no such profile.
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    file = resources.files("pahq_plugin.compare") / "plans" / f"{name}.toml"
    return make_plan(tomllib.loads(file.read_text(encoding="utf-8")), Path())


def make_plan(content: Mapping[str, Any], folder: Path) -> Plan:
    """Make a plan from the values of a TOML file; prompt files are relative to ``folder``.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or range.
    """
    _refuse_unknown(content, {*SETTINGS, "runs", "title", "note", "test_batches"}, "the plan")
    shared = {name: content[name] for name in SETTINGS if name in content}
    runs = content.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise ConfigError("runs must be one or more tables: [[runs]]")
    searches: dict[str, Search] = {}
    for run in runs:
        _refuse_unknown(run, set(SETTINGS), "a run")
        for search in _searches(shared | run, folder):
            searches.setdefault(search.folder, search)
    _refuse_ambiguous(searches.values())
    return Plan(
        tuple(searches.values()),
        test_batches=_count(content.get("test_batches"), "test_batches"),
        title=_text(content.get("title", Plan.title), "title"),
        note=_text(content.get("note", ""), "note"),
    )


def _searches(run: Mapping[str, Any], folder: Path) -> list[Search]:
    """Expand one run into its searches."""
    from pahq_plugin.compare.baselines import get_baseline
    from pahq_plugin.discovery.checks import ablation_type

    problems = [_problem(value, folder) for value in _list(run, "problems")]
    baselines = [get_baseline(_text(name, "a method")) for name in _list(run, "methods")]
    thresholds = [_threshold(value) for value in _list(run, "thresholds", THRESHOLDS)]
    seeds = [_seed(value) for value in _list(run, "seeds", (0,))]
    batches = _count(run.get("batches", 1), "batches")
    ablation = ablation_type(_text(run.get("ablation", "resample"), "ablation")).name.lower()
    options = run.get("options", {})
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options must hold finite numbers, strings and lists: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"options must be a table, not {options!r}")
    return [
        Search(problem, baseline.name, threshold, seed, batches, ablation, options)
        for problem, baseline, seed in product(problems, baselines, seeds)
        for threshold in (thresholds if baseline.sweeps else [None])
    ]


def _refuse_ambiguous(searches: Collection[Search]) -> None:
    """Refuse searches that tables or files cannot tell apart.

    Tables use problem, method, threshold and seed; files use the `slug` of a problem's label.
    """
    labelled: dict[str, ProblemSpec] = {}
    for problem in dict.fromkeys(search.problem for search in searches):
        other = labelled.setdefault(slug(problem.label), problem)
        if other is not problem:
            raise ConfigError(
                f"two problems are named {problem.label!r} and {other.label!r}, which tables and files "
                "cannot tell apart; compare them in separate plans"
            )
    alike: dict[tuple[str, str], Search] = {}
    for search in searches:
        first = alike.setdefault((search.problem.label, search.method), search)
        names = ("batches", "ablation", "options")
        differing = [name for name in names if getattr(search, name) != getattr(first, name)]
        if differing:
            raise ConfigError(
                f"two runs have {search.method} on {search.problem.label} with different "
                f"{' and '.join(differing)}; compare them in separate plans"
            )


def _problem(value: object, folder: Path) -> ProblemSpec:
    """Check a problem's name or table of `PROBLEM_SETTINGS`, and add digests of its files."""
    from pahq_plugin.problems.load import problem_names

    given: Any = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ConfigError(f"a problem must be a name or a table with a name, not {value!r}")
    _refuse_unknown(given, set(PROBLEM_SETTINGS), "a problem")
    if given["name"] not in problem_names():
        raise ConfigError(f"no problem {given['name']!r}; known: {', '.join(problem_names())}")
    prompts = given.get("prompts")
    if prompts is not None:
        file = folder / _text(prompts, "prompts")
        if not _is_readable(file):
            raise ConfigError(f"no readable prompt file {str(file)[:200]!r}")
        given = given | {"prompts": str(file.resolve()), "content": file_digest(file)}
    if given.get("model") is not None:
        given = given | {"model_content": folder_digest(_text(given["model"], "model"))}
    if not isinstance(given.get("bos"), (bool, type(None))):
        raise ConfigError(f"bos must be true or false, not {given['bos']!r}")
    if not isinstance(given.get("positional", False), bool):
        raise ConfigError(f"positional must be true or false, not {given['positional']!r}")
    size = given.get("batch_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f"batch_size must be an integer above 0, not {size!r}")
    spec = ProblemSpec(**given)
    if not spec.label.isprintable():
        raise ConfigError(f"a problem is named {spec.label!r}; names must be printable")
    return spec


def _is_readable(file: Path) -> bool:
    try:
        return file.is_file() and os.access(file, os.R_OK)
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return False


def _refuse_unknown(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigError(f"{where} has no key {unknown[0]!r}; it takes {', '.join(sorted(known))}")


def _list(run: Mapping[str, Any], name: str, default: tuple[Any, ...] | None = None) -> list[Any]:
    value = run.get(name, default)
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{name} must be a list with at least one entry, not {value!r}")
    return list(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {value!r}")
    return value


def _threshold(value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
        raise ConfigError(f"a threshold must be a number above 0, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _seed(value: object) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_SEED:
        raise ConfigError(f"a seed must be an integer from 0 to 2**63 - 1, not {value!r}")
    return value


def _count(value: object, name: str) -> int | None:
    """Check a number of batches; 0 means all and becomes ``None``."""
    if value is not None and (type(value) is not int or value < 0):
        raise ConfigError(f"{name} must be 0 (all) or an integer above 0, not {value!r}")
    return value or None
