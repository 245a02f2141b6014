"""Saved results: ``result.json`` and ``run.json`` as they are read, printed and drawn."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from typer.testing import CliRunner

from pahq_plugin.cli.app import app
from pahq_plugin.host import PatchableModel
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.files import read_record, read_stats, record_text
from pahq_plugin.results.result import Discovery, Stats
from tests.fuzz.bench import Bench, Refused, Violation, check_message, holds
from tests.fuzz.hostile import MARKUP, json_text, written
from tests.fuzz.octets import damaged_bytes
from tests.fuzz.target import Target
from tests.helpers.small import patchable, transformer

SEARCH = {"method": "acdc", "threshold": 0.01, "metric": "mse", "ablation": "resample", "scored": False,
          "seed": 0, "precision": {"low": "int8", "mlp": "int8"}}  # fmt: skip
SCORED = {"method": "eap", "ablation": "resample", "scored": True, "seed": 0, "n_edges": None}
EFFECTS = (0.5, -0.25, 0.001, 0.02, 0.0, 3.0, 0.01, 1e-12)


@cache
def tiny() -> PatchableModel:
    """One block with one head: eight edges."""
    sizes = {
        "n_layers": 1,
        "n_heads": 1,
        "d_model": 4,
        "d_head": 4,
        "d_mlp": 4,
        "n_ctx": 8,
        "d_vocab": 8,
    }
    return patchable(transformer(**sizes))


@cache
def discoveries() -> tuple[Discovery, ...]:
    """A search, and a method that scores."""
    model = tiny()
    pairs = list(zip(canonical_edges(model), EFFECTS, strict=True))
    stats = Stats(
        evaluations=9, seconds=0.1, guard={"relative": 0.1}, sensitivity={"blocks.0.qkv": 0.01}
    )
    found = tuple(Decision(edge, effect, effect >= 0.01, True) for edge, effect in pairs)
    ranked = sorted(pairs, key=lambda pair: -abs(pair[1]))
    scored = tuple(Decision(edge, score, abs(score) >= 0.02, True) for edge, score in ranked)
    return Discovery(found, SEARCH, stats, model), Discovery(scored, SCORED, stats, model)


def records() -> list[Any]:
    """Contents of ``result.json``."""
    made = [discovery.record() for discovery in discoveries()]
    names = [
        "Resid Start->A0.0.Q",
        "Resid Start->MLP 0",
        "A0.0->MLP 0",
        "MLP 0->Resid End",
        "x->y",
        "y->z",
    ]
    other = made[0] | {
        "model": {"name": "other", "digest": "d", "edges": len(names)},
        "decisions": [
            {"edge": name, "seq_idx": i, "effect": i / 10, "kept": i > 0, "exact": False}
            for i, name in enumerate(names)
        ],
    }
    return [*made, other]


def files() -> tuple[bytes, ...]:
    """Valid files."""
    return tuple(record_text(record).encode() for record in records())


def check(content: bytes, bench: Bench) -> None:
    """What is accepted is written again as it was, and can be loaded with its model."""
    path = bench.put("result/result.json", content)
    record = bench.call(read_record, path)
    for entry in record["decisions"]:
        holds(abs(entry["effect"]) < float("inf"), f"effect {entry['effect']}")
    again = bench.put("again/result.json", bench.call(record_text, record).encode("utf-8"))
    holds(bench.call(read_record, again) == record, "written again it is another record")
    found = bench.call(Discovery.load, path, tiny())
    _check_circuit(found)
    bench.clean()
    saved = json.loads((bench.call(found.save, bench.out / "saved") / "result.json").read_text())
    for key in ("settings", "decisions"):
        holds(saved[key] == json.loads(json.dumps(record[key])), f"saved again, {key} differ")


def _check_circuit(found: Discovery) -> None:
    """The top ``len(circuit)`` prune scores are the circuit, and all are finite."""
    scores = {edge: float(edge.prune_score(found.prune_scores)) for edge in found.model.edges}
    holds(all(abs(score) < float("inf") for score in scores.values()), "prune scores are not finite")
    kept = [abs(scores[edge]) for edge in found.circuit]
    removed = [abs(scores[edge]) for edge in found.model.edges - found.circuit]
    holds(min(kept, default=1e999) > max(removed, default=-1.0), "prune scores do not give the circuit")
    holds(all(torch.isfinite(score).all() for score in found.prune_scores.values()), "prune scores")


def check_stats(content: bytes, bench: Bench) -> None:
    """``run.json``: finite numbers, none below zero."""
    stats = bench.call(read_stats, bench.put("result/run.json", content).parent)
    json.dumps(stats, allow_nan=False)
    numbers = [v for v in stats.values() if not isinstance(v, dict)]
    holds(all(0 <= number < float("inf") for number in numbers), f"stats {stats!r:.200}")
    Stats(**stats)


WAYS: tuple[tuple[str, ...], ...] = (
    ("--json",), (), ("--top", "3"), ("--dot", "-"), ("--dot", "{out}/g.dot"),
    ("--html", "{out}/p.html"),
    ("--html", "{out}/a/b.html", "--compare", "{inputs}/good"), ("--html", "{out}/p.html", "--force"),
)  # fmt: skip


def check_show(content: tuple[bytes, tuple[str, ...], bytes], bench: Bench) -> None:
    """``pahq show`` prints or draws it, or says in one line why not; a page holds no markup of it."""
    result, way, run = content
    bench.clean()
    folder = bench.put("result/result.json", result).parent
    bench.put("result/run.json", run)
    bench.put("good/result.json", files()[0])
    options = [word.format(out=bench.out, inputs=bench.inputs) for word in way]
    printed = invoke(bench, app, ["show", str(folder), *options])
    for path in bench.out.rglob("*.html"):
        holds(MARKUP not in path.read_text(encoding="utf-8"), "markup of a result stands in the page")
    if "--dot" not in way:
        holds(all(c.isprintable() or c == "\n" for c in printed), "controls reach the terminal")
    if "--json" in way:
        json.loads(printed, parse_constant=lambda name: holds(False, f"{name} in printed JSON"))


def invoke(bench: Bench, application: Any, arguments: list[str], seconds: float = 1.0) -> str:
    """Standard output of a command.

    Raises:
        Refused: it ended with exit code 1 and one line, or 2 and how to use it.
        Violation: with anything else.
    """
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    result = bench.call(runner.invoke, application, arguments, seconds=seconds)
    if result.exit_code == 0:
        holds(result.exception is None, f"exit code 0 with {result.exception!r:.200}")
        holds("Traceback" not in result.output, "a traceback")
        return result.stdout
    if result.exit_code == 1 and isinstance(result.exception, SystemExit):
        line = result.stderr.rstrip("\n")
        check_message(line)
        holds(line.startswith("error: "), f"not an error line: {line!r:.200}")
        raise Refused(line)
    if result.exit_code == 2 and "Usage: " in result.stderr and "error: unexpected" not in result.stderr:
        raise Refused("usage")
    raise Violation(f"exit code {result.exit_code}: {result.exception!r:.300} {result.stderr[-300:]!r}")


def only(folder: Path, pattern: str) -> bytes:
    """The content of the one file that fits."""
    (path,) = folder.glob(pattern)
    return path.read_bytes()


def targets() -> list[Target]:
    """Reading and loading, run records, and the command."""
    stats = {"stats": vars(discoveries()[0].stats), "device": "cpu", "versions": {"torch": "2"}}
    stats_file = json_text(stats).encode()
    of_result = st.one_of(written(records()), written(records()), damaged_bytes(files()))
    of_stats = st.one_of(written([stats]), damaged_bytes([stats_file]))
    shown = st.tuples(of_result, st.sampled_from(WAYS), st.one_of(st.just(stats_file), of_stats))
    return [
        Target("result", of_result, check, share=2, files=files()),
        Target("run-record", of_stats, check_stats, files=(stats_file,)),
        Target("show", shown, check_show, share=0.2, sample=30),
    ]
