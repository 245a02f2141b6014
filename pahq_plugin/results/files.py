"""Saved results as JSON: read and checked without the model, written with one decision per line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pahq_plugin.errors import ResultError
from pahq_plugin.system.files import read_json

SCHEMA = "pahq-discovery/1"
RESULT_FILE, RUN_FILE = "result.json", "run.json"
CHECKPOINT = "checkpoint.safetensors"
"""In the folder of a result while the search is running."""

Fields = dict[str, type | tuple[type, ...]]
"""Names of fields and their types."""

SETTINGS: Fields = {"method": str, "scored": bool, "ablation": str, "seed": int}
"""Settings of every result."""

SEARCH_SETTINGS: Fields = {"threshold": (int, float), "metric": str, "precision": (dict, type(None))}
"""Further settings of a search."""

STATS: Fields = {
    "evaluations": int,
    "re_evaluations": int,
    "seconds": (int, float),
    "peak_bytes": int,
    "forward_equivalents": (int, float),
    "guard": dict,
    "estimates": dict,
    "sensitivity": dict,
    "memory": dict,
}

ENTRY_FIELDS = {"edge", "seq_idx", "effect", "kept", "exact"}


def record_text(record: dict[str, Any]) -> str:
    """Return a record as JSON text: equal records, equal bytes; a diff shows single decisions."""
    head = {key: value for key, value in record.items() if key != "decisions"}
    lines = ",\n".join("  " + json.dumps(entry, allow_nan=False) for entry in record["decisions"])
    opening = json.dumps(head, indent=1, sort_keys=True, allow_nan=False).removesuffix("\n}")
    return f'{opening},\n "decisions": [\n{lines}\n ]\n}}\n'


def result_file(path: str | Path) -> Path:
    """Return the path of a saved result's ``result.json``; ``path`` is that file or its folder.

    Raises:
        ResultError: there is no such file.
    """
    given = Path(path)
    file = given / RESULT_FILE if given.is_dir() else given
    if not file.is_file():
        if (given / CHECKPOINT).is_file():
            raise ResultError(f"the run in {given} has not finished; run its command again to continue")
        raise ResultError(f"no result at {given}; expected a folder with {RESULT_FILE}")
    return file


def read_record(file: Path) -> dict[str, Any]:
    """Read and check a ``result.json``.

    Raises:
        ResultError: not JSON, an unknown schema, or a field that is missing or of the wrong type.
    """
    try:
        record = read_json(file)
    except (OSError, ValueError) as error:
        raise ResultError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ResultError(f"{file} is not a result of this version; expected schema {SCHEMA!r}")
    model, settings, decisions = (record.get(k) for k in ("model", "settings", "decisions"))
    if not (isinstance(model, dict) and isinstance(settings, dict) and isinstance(decisions, list)):
        raise ResultError(f"{file} lacks model, settings or decisions")
    if not _fits(model, {"digest": str, "name": str, "edges": int}):
        raise ResultError(f"{file}: model must hold a name, a digest and a number of edges")
    scored = settings.get("scored") is True
    if not _fits(settings, SETTINGS if scored else SETTINGS | SEARCH_SETTINGS):
        raise ResultError(f"{file}: a field of settings is missing or of the wrong type")
    precision = settings.get("precision")
    if precision and not (isinstance(precision, dict) and _fits(precision, {"low": str, "mlp": str})):
        raise ResultError(f"{file}: settings: precision must name the formats low and mlp")
    if not scored and not settings["threshold"] > 0:
        raise ResultError(f"{file}: settings: threshold {settings['threshold']!r} must be above 0")
    for number, entry in enumerate(decisions):
        if not _is_entry(entry):
            raise ResultError(f"{file}: decision {number} is damaged: {json.dumps(entry)[:80]}")
    distinct = {(entry["edge"], entry["seq_idx"]) for entry in decisions}
    if not len(distinct) == len(decisions) == model["edges"]:
        raise ResultError(
            f"{file} holds {len(decisions)} decisions on {len(distinct)} edges; "
            f"the model has {model['edges']}, each decided once"
        )
    for entry in [] if scored else decisions:  # scores may go with any circuit
        if entry["kept"] != (entry["effect"] >= settings["threshold"]):
            raise ResultError(
                f"{file}: {entry['edge']} is marked {'kept' if entry['kept'] else 'removed'}, "
                f"but its effect is {entry['effect']:g}"
            )
    return record


def _fits(values: dict[str, Any], fields: Fields) -> bool:
    """Return whether ``values`` has every field with its type; a bool does not count as a number."""
    return all(
        isinstance(values.get(name), kind) and (kind is bool or not isinstance(values.get(name), bool))
        for name, kind in fields.items()
    )


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != ENTRY_FIELDS:
        return False
    position = entry["seq_idx"]
    return (
        _fits(entry, {"edge": str, "effect": (int, float), "kept": bool, "exact": bool})
        and entry["edge"].count("->") == 1
        and (position is None or (type(position) is int and position >= 0))
        and math.isfinite(entry["effect"])
    )


def read_configuration(folder: Path) -> str | None:
    """Return the digest of the model's configuration from the ``run.json`` beside a result; ``None`` if
    there is no such file.

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
    """Return the cost of the run from the ``run.json`` beside a result; empty if there is no such file.

    Raises:
        ResultError: the file is damaged.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return {}
    try:
        stats = {"estimates": {}} | read_json(file)["stats"]  # older files lack it
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{file} is damaged: {error}") from error
    if not isinstance(stats, dict) or stats.keys() != STATS.keys() or not _fits(stats, STATS):
        raise ResultError(f"{file} is damaged: stats must hold {', '.join(STATS)}")
    for name, value in stats.items():
        numbers = value.values() if isinstance(value, dict) else [value]
        if not all(type(number) in (int, float) and number >= 0 for number in numbers):
            raise ResultError(f"{file} is damaged: {name} must hold numbers of at least 0")
    return stats
