"""Saved results as JSON: read and checked without loading a model, written one decision a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pahq_plugin.errors import ResultError
from pahq_plugin.system.files import read_json

SCHEMA = "pahq-discovery/1"


RUN_FILE = "run.json"


SETTINGS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "scored": bool,
    "ablation": str,
    "seed": int,
}
"""What every result's settings hold, and of which type."""


SEARCH_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "threshold": (int, float),
    "metric": str,
    "precision": (dict, type(None)),
}
"""What those of a search hold besides."""


STATS: dict[str, type | tuple[type, ...]] = {
    "evaluations": int,
    "re_evaluations": int,
    "seconds": (int, float),
    "peak_bytes": int,
    "forward_equivalents": (int, float),
    "guard": dict,
    "sensitivity": dict,
    "memory": dict,
}


ENTRY_FIELDS = {"edge", "seq_idx", "effect", "kept", "exact"}


def record_text(record: dict[str, Any]) -> str:
    """JSON text of a record: equal records give equal bytes, and a diff shows single decisions."""
    head = {key: value for key, value in record.items() if key != "decisions"}
    lines = ",\n".join("  " + json.dumps(entry, allow_nan=False) for entry in record["decisions"])
    opening = json.dumps(head, indent=1, sort_keys=True, allow_nan=False).removesuffix("\n}")
    return f'{opening},\n "decisions": [\n{lines}\n ]\n}}\n'


def result_file(path: str | Path) -> Path:
    """``result.json`` of a saved result.

    Raises:
        ResultError: there is none.
    """
    given = Path(path)
    file = given / RESULT_FILE if given.is_dir() else given
    if not file.is_file():
        if (given / CHECKPOINT).is_file():
            raise ResultError(f"the run in {given} has not finished; start its command again to go on")
        raise ResultError(f"no result at {given}; expected a folder with {RESULT_FILE}")
    return file


def read_record(file: Path) -> dict[str, Any]:
    """The checked content of a ``result.json``.

    Raises:
        ResultError: not JSON, another schema, or a field that is missing or of the wrong type.
    """
    try:
        record = read_json(file)
    except (OSError, ValueError) as error:
        raise ResultError(f"{file} is no readable JSON: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ResultError(f"{file} is no result of this version; expected schema {SCHEMA!r}")
    model, settings, decisions = (record.get(k) for k in ("model", "settings", "decisions"))
    if not (isinstance(model, dict) and isinstance(settings, dict) and isinstance(decisions, list)):
        raise ResultError(f"{file} lacks model, settings or decisions")
    if not _fits(model, {"digest": str, "name": str, "edges": int}):
        raise ResultError(f"{file}: model must hold a name, a digest and a number of edges")
    scored = settings.get("scored") is True
    if not _fits(settings, SETTINGS if scored else SETTINGS | SEARCH_SETTINGS):
        raise ResultError(f"{file}: settings lack a field or hold one of another type")
    precision = settings.get("precision")
    if precision and not (isinstance(precision, dict) and _fits(precision, {"low": str, "mlp": str})):
        raise ResultError(f"{file}: settings: precision must name the formats low and mlp")
    if not scored and not settings["threshold"] > 0:
        raise ResultError(f"{file}: settings: threshold {settings['threshold']!r} must be above 0")
    for number, entry in enumerate(decisions):
        if not _is_entry(entry):
            raise ResultError(f"{file}: decision {number} is damaged: {json.dumps(entry)[:80]}")
    _check_complete(file, decisions, model["edges"])
    if not scored:
        _check_kept(file, decisions, settings["threshold"])
    return record


def _fits(values: dict[str, Any], fields: dict[str, Any]) -> bool:
    """Whether ``values`` holds every one of ``fields`` in its type; a bool counts as no number."""
    return all(
        isinstance(values.get(name), kind) and (kind is bool or not isinstance(values.get(name), bool))
        for name, kind in fields.items()
    )


def _check_complete(file: Path, decisions: list[dict[str, Any]], edges: int) -> None:
    """
    Raises:
        ResultError: not one decision for every edge.
    """
    distinct = {(entry["edge"], entry["seq_idx"]) for entry in decisions}
    if not len(distinct) == len(decisions) == edges:
        raise ResultError(
            f"{file} holds {len(decisions)} decisions on {len(distinct)} edges; "
            f"the model has {edges}, each decided once"
        )


def _check_kept(file: Path, decisions: list[dict[str, Any]], threshold: float) -> None:
    """Hold the decisions of a search against its threshold; scores may go with any circuit.

    Raises:
        ResultError: an edge that was kept or removed against its effect.
    """
    wrong = [e for e in decisions if e["kept"] != (e["effect"] >= threshold)]
    if wrong:
        raise ResultError(
            f"{file}: {wrong[0]['edge']} is marked {'kept' if wrong[0]['kept'] else 'removed'} "
            f"against its effect of {wrong[0]['effect']:g}"
        )


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != ENTRY_FIELDS:
        return False
    number = entry["effect"]
    return (
        isinstance(entry["edge"], str)
        and entry["edge"].count("->") == 1
        and (entry["seq_idx"] is None or (type(entry["seq_idx"]) is int and entry["seq_idx"] >= 0))
        and isinstance(number, (int, float))
        and not isinstance(number, bool)
        and math.isfinite(number)
        and isinstance(entry["kept"], bool)
        and isinstance(entry["exact"], bool)
    )


def read_configuration(folder: Path) -> str | None:
    """The digest of the configuration that a result's model had, from ``run.json`` beside the result;
    ``None`` where that was not kept.

    Raises:
        ResultError: the file is damaged.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return None
    try:
        configuration = read_json(file).get("configuration")
    except (OSError, ValueError, AttributeError) as error:
        raise ResultError(f"{file} is damaged: {error}") from error
    if not isinstance(configuration, (str, type(None))):
        raise ResultError(f"{file} is damaged: configuration must be a digest")
    return configuration


def read_stats(folder: Path) -> dict[str, Any]:
    """What the run cost, from ``run.json`` beside the result; empty where that was not kept.

    Raises:
        ResultError: the file is damaged.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return {}
    try:
        stats = read_json(file)["stats"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{file} is damaged: {error}") from error
    if not isinstance(stats, dict) or stats.keys() != STATS.keys() or not _fits(stats, STATS):
        raise ResultError(f"{file} is damaged: stats must hold {', '.join(STATS)}")
    for name, value in stats.items():
        numbers = value.values() if isinstance(value, dict) else [value]
        if not all(type(number) in (int, float) and number >= 0 for number in numbers):
            raise ResultError(f"{file} is damaged: {name} must hold numbers of at least 0")
    return stats


RESULT_FILE = "result.json"


CHECKPOINT = "checkpoint.safetensors"
"""In the folder of a result, as long as the search goes on."""
