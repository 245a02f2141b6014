"""Saved results as JSON: read and checked without loading a model, written one decision a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pahq_plugin.errors import ResultError

SCHEMA = "pahq-discovery/1"
RESULT_FILE = "result.json"
RUN_FILE = "run.json"

ENTRY_FIELDS = {"edge", "seq_idx", "effect", "kept", "exact"}


def record_text(record: dict[str, Any]) -> str:
    """JSON text of a record: equal records give equal bytes, and a diff shows single decisions."""
    head = {key: value for key, value in record.items() if key != "decisions"}
    lines = ",\n".join("  " + json.dumps(entry) for entry in record["decisions"])
    opening = json.dumps(head, indent=1, sort_keys=True).removesuffix("\n}")
    return f'{opening},\n "decisions": [\n{lines}\n ]\n}}\n'


def result_file(path: str | Path) -> Path:
    """``result.json`` of a saved result.

    Raises:
        ResultError: there is none.
    """
    given = Path(path)
    file = given / RESULT_FILE if given.is_dir() else given
    if not file.is_file():
        raise ResultError(f"no result at {given}; expected a folder with {RESULT_FILE}")
    return file


def read_record(file: Path) -> dict[str, Any]:
    """The checked content of a ``result.json``.

    Raises:
        ResultError: not JSON, another schema, or a field that is missing or of the wrong type.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ResultError(f"{file} is no readable JSON: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ResultError(f"{file} is no result of this version; expected schema {SCHEMA!r}")
    model, settings, decisions = (record.get(k) for k in ("model", "settings", "decisions"))
    if not (isinstance(model, dict) and isinstance(settings, dict) and isinstance(decisions, list)):
        raise ResultError(f"{file} lacks model, settings or decisions")
    if not all(isinstance(model.get(k), t) for k, t in (("digest", str), ("name", str), ("edges", int))):
        raise ResultError(f"{file}: model must hold a name, a digest and a number of edges")
    for number, entry in enumerate(decisions):
        if not _is_entry(entry):
            raise ResultError(f"{file}: decision {number} is damaged: {json.dumps(entry)[:80]}")
    return record


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != ENTRY_FIELDS:
        return False
    number = entry["effect"]
    return (
        isinstance(entry["edge"], str)
        and (entry["seq_idx"] is None or type(entry["seq_idx"]) is int)
        and isinstance(number, (int, float))
        and not isinstance(number, bool)
        and math.isfinite(number)
        and isinstance(entry["kept"], bool)
        and isinstance(entry["exact"], bool)
    )


def read_stats(folder: Path) -> dict[str, Any]:
    """What the run cost, from ``run.json`` beside the result; empty where that was not kept.

    Raises:
        ResultError: the file is damaged.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["stats"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{file} is damaged: {error}") from error
