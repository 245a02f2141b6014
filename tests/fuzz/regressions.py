"""Inputs that once broke a promise, by target: those that are refused now, and those that are taken."""

from __future__ import annotations

import json
from typing import Any

from tests.fuzz.graphs import description_of, exported
from tests.fuzz.hostile import Raw, Twice, json_text, toml_text
from tests.fuzz.plans import COMPARED, JUDGED, SEARCH
from tests.fuzz.prompts import IDS, PAIR
from tests.fuzz.results import WAYS, discoveries, records

RECORD, RANKING, _ = records()
STRONGEST, *WEAKER = RANKING["decisions"]
STATS = vars(discoveries()[0].stats)
RUN = json_text({"stats": STATS}).encode()


def result(record: Any = RECORD, **changes: Any) -> bytes:
    """A ``result.json`` with other values at its top."""
    return json_text(record | changes).encode("utf-8", "surrogatepass")


def effect(value: Any) -> bytes:
    """A result whose first effect is another one."""
    first, *others = RECORD["decisions"]
    return result(decisions=[first | {"effect": value}, *others])


def settings(**changes: Any) -> bytes:
    """A result with other settings."""
    return result(settings=RECORD["settings"] | changes)


def named(name: str) -> bytes:
    """A result of one edge."""
    entry = {"edge": name, "seq_idx": None, "effect": 1.0, "kept": True, "exact": True}
    return result(model=RECORD["model"] | {"edges": 1}, decisions=[entry])


def prompts(**changes: Any) -> bytes:
    """A prompt file with other values at its top."""
    return json_text(IDS | changes).encode()


def plan(**changes: Any) -> bytes:
    """A plan with other values."""
    return toml_text(COMPARED | changes).encode()


def compared(
    *, planned: bytes = plan(), search: Any = SEARCH, stats: Any = STATS, judged: Any = JUDGED
) -> Any:
    """A comparison's folder with other files."""
    return planned, *(json_text(one).encode() for one in (search, {"stats": stats}, judged))


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    """The record without a key."""
    return {name: value for name, value in record.items() if name != key}


def many_positions() -> bytes:
    """A description with edges of 2**31 positions."""
    known = description_of(exported()["d.onnx"])
    return json.dumps(known | {"n_ctx": 2**31, "seq_len": 2**31}).encode()


DEEP, LONG = Raw("[" * 100_000 + "]" * 100_000), "x" * 50_000

REFUSED: list[tuple[str, Any]] = [
    ("prompts", prompts(prompts=DEEP)),
    ("prompts", prompts(prompts=[PAIR | {"clean": f"When {LONG}"}])),
    ("prompts", prompts(seq_labels=["BOS", "a", 3, "c"])),
    ("prompts", prompts(seq_labels=["BOS", "a"])),
    ("prompts", prompts(word_idxs={"end": 4})),
    ("prompts", prompts(word_idxs={"end": -1})),
    ("prompts-light", prompts(prompts=[PAIR | {"clean": [0, -5, 6, 7]}])),
    ("result", effect(10**400)),
    ("result", effect(Raw("9" * 5000))),
    ("result", effect(Raw("1e999"))),
    ("result", settings(note=float("nan"))),
    ("result", settings(seed=Twice(1, 2))),
    ("result", settings(threshold=-1.0)),
    ("result", result(model=RECORD["model"] | {"name": "\x1b[31m\n", "digest": "other"})),
    ("show", (settings(precision={"": None}), WAYS[1], b"{}")),
    ("show", (settings(precision={"low": 1, "mlp": "int8"}), WAYS[3], b"{}")),
    ("run-record", json_text({"stats": STATS | {"evaluations": -1}}).encode()),
    ("run-record", json_text({"stats": STATS | {"seconds": Raw("1e999")}}).encode()),
    ("run-record", json_text({"stats": STATS | {"guard": {"relative": "wide"}}}).encode()),
    ("plan", plan(runs=[])),
    ("plan", plan(seeds=[Raw("9" * 5000)])),
    ("plan", plan(seeds=[2**64])),
    ("plan", plan(thresholds=[10**400])),
    ("plan", plan(problems=[{"name": "ioi", "model": "\x1b[31m"}])),
    ("plan", plan(**{LONG: 1})),
    ("comparison", compared(search=[])),
    ("comparison", compared(search=without(SEARCH, "options"))),
    ("comparison", compared(search=SEARCH | {"extra_bytes": "many"})),
    *(("comparison", compared(judged=without(JUDGED, key))) for key in JUDGED),
    ("comparison", compared(judged=JUDGED | {"method": "acdc"})),
    ("comparison", compared(judged=JUDGED | {"edges": 0})),
    ("comparison", compared(judged=JUDGED | {"metric": "\ud800"})),
    ("comparison", compared(judged=JUDGED | {"whole": [[2**64, 2.0, 1.0], [0.2, 1.5, 0.0]]})),
    ("comparison", compared(judged=JUDGED | {"whole": [[0.1, 2.0, 1.0], [0.2]]})),
    ("comparison", compared(judged=JUDGED | {"circuits": [{"threshold": 0.01, "size": 4}]})),
    ("comparison", compared(judged=JUDGED | {"true_edges": [[{}, None]]})),
    ("precision", {"low": []}),
    ("precision", {"parts": 0.5}),
    ("precision", {"streams": 1}),
    ("precision", {"formats": {"unembed": []}}),
    ("precision", {"guard": 10**400}),
    ("search", {"threshold": 10**400}),
    ("search", {"seed": 2**64}),
    ("discover", {"method": {}}),
    ("light-command", ["run", LONG, "--prompts", "p.json", "--all"]),
]

ACCEPTED: list[tuple[str, Any]] = [
    ("result", result(RANKING, decisions=[STRONGEST | {"effect": 1e300}, *WEAKER])),
    ("result", effect(1e308)),
    ("show", (result(model=RECORD["model"] | {"name": "m\ud800"}), WAYS[1], RUN)),
    ("show", (named("a\x1b[31m->b"), WAYS[1], RUN)),
    ("show", (named(f"A{'9' * 5000}.0->Resid End"), WAYS[3], RUN)),
    ("comparison", compared(planned=plan(problems=[{"name": "ioi", "model": "../../../x"}]),
                            judged=JUDGED | {"problem": "ioi ../../../x"})),
    ("precision", {"parts": ["qkv"], "streams": []}),
    ("description", many_positions()),
]  # fmt: skip
