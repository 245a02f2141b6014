"""Read and check the files that a comparison leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pahq_plugin.compare.held_out import MEASURES
from pahq_plugin.errors import ResultError
from pahq_plugin.metrics import METRICS
from pahq_plugin.system.files import read_json


def read_search(file: Path) -> dict[str, Any]:
    """Read and check a ``search.json``.

    Raises:
        ResultError: the file is damaged.
    """
    record = _record(file)
    fits = {
        "search": isinstance(record.get("search"), dict),
        "extra_bytes": _is_integer(record.get("extra_bytes")),
        "threads": _is_count(record.get("threads")),
        "metric": record.get("metric") in list(METRICS),
        "options": isinstance(record.get("options"), dict),
    }
    _check(file, fits)
    return record


def read_judged(file: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check one method's circuits on held-out prompts, see `pahq_plugin.compare.work.judge`.

    Raises:
        ResultError: the file is damaged, or has another problem, method or seed than ``expected``.
    """
    record = _record(file)
    edges, measures = record.get("edges"), record.get("measures")
    fits = {name: record.get(name) == value for name, value in expected.items()}
    fits |= {
        "metric": record.get("metric") in list(METRICS),
        "edges": _is_count(edges) and edges > 0,  # type: ignore[operator]
        "measures": measures in (list(MEASURES), list(MEASURES[:1])),
    }
    _check(file, fits)
    width, whole = len(record["measures"]), record.get("whole")
    prompts = len(whole) if isinstance(whole, list) else 0
    fits = {name: _are_rows(record.get(name), prompts, width) for name in ("whole", "empty")}
    circuits = record.get("circuits")
    fits["circuits"] = isinstance(circuits, list) and all(
        _is_circuit(circuit, record["edges"], prompts, width) for circuit in circuits
    )
    fits["true_edges"] = "true_edges" in record and _are_edges(record["true_edges"], record["edges"])
    _check(file, fits)
    return record


def _record(file: Path) -> dict[str, Any]:
    try:
        record = read_json(file)
    except (OSError, ValueError) as error:
        raise ResultError(f"{file} is damaged; delete it and run again: {error}") from error
    if not isinstance(record, dict):
        raise ResultError(f"{file} is damaged; delete it and run again: it is not a JSON object")
    return record


def _check(file: Path, fits: Mapping[str, bool]) -> None:
    """Refuse a file with a field that does not fit; ``fits`` maps each field to whether it does."""
    wrong = [name for name, right in fits.items() if not right]
    if wrong:
        raise ResultError(f"{file} is damaged; delete it and run again: {wrong[0]} is missing or wrong")


def _is_integer(value: object) -> bool:
    """Return whether the value is an integer that fits into 64 bits, as a column of numbers needs."""
    return type(value) is int and abs(value) < 2**63


def _is_count(value: object) -> bool:
    return _is_integer(value) and value >= 0  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return type(value) is float or _is_integer(value)


def _are_rows(rows: object, prompts: int, width: int) -> bool:
    """Return whether ``rows`` has one row per prompt, with a number for each measure."""
    return (
        isinstance(rows, list)
        and len(rows) == prompts > 0
        and all(
            isinstance(row, list) and len(row) == width and all(map(_is_number, row)) for row in rows
        )
    )


def _is_circuit(circuit: object, edges: int, prompts: int, width: int) -> bool:
    """Return whether a circuit has a size and its measures, and with a threshold its complement's."""
    if not isinstance(circuit, dict) or "threshold" not in circuit:
        return False
    threshold, size = circuit["threshold"], circuit.get("size")
    if (
        type(size) is not int
        or not 0 <= size <= edges
        or not _are_rows(circuit.get("inside"), prompts, width)
    ):
        return False
    if threshold is None:
        return True
    return _is_number(threshold) and threshold > 0 and _are_rows(circuit.get("outside"), prompts, width)


def _are_edges(labels: object, edges: int) -> bool:
    """Return whether ``labels`` is ``None``, or lists some but not all edges, each once."""
    if labels is None:
        return True
    if not isinstance(labels, list) or not all(map(_is_label, labels)):
        return False
    return 0 < len({tuple(label) for label in labels}) == len(labels) < edges


def _is_label(label: object) -> bool:
    if not isinstance(label, list) or len(label) != 2:
        return False
    name, position = label
    return isinstance(name, str) and (position is None or _is_count(position))
