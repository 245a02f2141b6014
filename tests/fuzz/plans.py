"""Comparisons: the TOML of a plan, and the files that a sweep leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pahq_plugin.compare.page.page import Report
from pahq_plugin.compare.page.write import make_frames, reductions, shown_tables, write_tables
from pahq_plugin.compare.plan import Plan, read_plan
from pahq_plugin.compare.run import Outcome, judgements_of
from pahq_plugin.compare.tables import read_material
from pahq_plugin.results.files import record_text
from tests.fuzz.bench import Bench, holds
from tests.fuzz.hostile import TEXTS, json_text, toml_text, written
from tests.fuzz.octets import damaged_bytes
from tests.fuzz.results import discoveries
from tests.fuzz.target import Target

DOCUMENTS: list[Any] = [
    {"problems": ["ioi", {"name": "greater-than", "batch_size": 4, "model": "gpt2"}],
     "methods": ["pahq", "eap"], "thresholds": [0.01, 0.001], "seeds": [0, 1],
     "title": "Mine", "note": "",
     "test_batches": 2},
    {"problems": [{"name": "induction", "prompts": "p.json", "positional": True}], "batches": 0,
     "seeds": [0], "runs": [{"methods": ["host-acdc"], "thresholds": [0.5]},
                            {"methods": ["act-mag"], "ablation": "zero", "options": {"epochs": 3}}]},
    {"problems": ["ioi"], "runs": [{"methods": ["pahq@int8", "acdc"]}]},
]  # fmt: skip
FILES = tuple(toml_text(document).encode() for document in DOCUMENTS)

COMPARED = {
    "problems": ["ioi"],
    "methods": ["acdc", "eap"],
    "thresholds": [0.01],
    "seeds": [0],
    "title": "Mine",
}
MOST_SEARCHES = 50

ROWS = [[0.1, 2.0, 1.0], [0.2, 1.5, 0.0]]
SEARCH = {"search": {}, "extra_bytes": 100, "threads": 1, "metric": "kl_div", "options": {}}
JUDGED = {
    "problem": "ioi", "method": "eap", "seed": 0, "metric": "kl_div", "edges": 8,
    "measures": ["loss", "logit_diff", "correct"], "whole": ROWS,
    "empty": [[1.0, 0.0, 0.0], [2.0, -1.0, 1.0]],
    "circuits": [
        {"threshold": 0.01, "size": 4, "inside": ROWS, "outside": [[0.5, 0.5, 0.5], [0.6, 0.4, 1.0]]},
        {"threshold": None, "size": 2, "inside": ROWS},
    ],
    "true_edges": [["A0.0->MLP 0", None], ["MLP 0->Resid End", None]],
}  # fmt: skip


def check_plan(content: bytes, bench: Bench) -> None:
    """Searches have folders of their own inside the output folder, and finite settings."""
    bench.put("p.json", b'{"prompts": []}')
    plan = bench.call(read_plan, bench.put("plan.toml", content))
    _check_folders(plan, bench)
    json.dumps(bench.call(plan.record), allow_nan=False).encode()
    json.dumps([plan.title, plan.note], allow_nan=False).encode()


def _check_folders(plan: Plan, bench: Bench) -> None:
    names = [search.folder for search in plan.searches]
    holds(len(set(names)) == len(names) > 0, "two searches in one folder, or none")
    for search in plan.searches:
        inside = (bench.out / search.folder).resolve()
        holds(
            inside.parent == bench.out and len(search.folder) < 200,
            f"a search in {search.folder!r:.200}",
        )
        holds(search.threshold is None or 0 < search.threshold < float("inf"), "a threshold")
        holds(search.label.isprintable(), f"label {search.label!r:.200}")


def check_comparison(content: tuple[bytes, bytes, bytes, bytes], bench: Bench) -> None:
    """A sweep's folder with damaged files is reported or refused; tables stay in their folder."""
    planned, search_file, run_file, judged_file = content
    bench.clean()
    plan = bench.call(read_plan, bench.put("plan.toml", planned))
    if len(plan.searches) > MOST_SEARCHES:
        return
    folder = _laid_out(plan, bench, search_file, run_file, judged_file)
    frames, report = bench.call(_reported, plan, folder, seconds=3)
    bench.call(write_tables, report, bench.out / "tables")
    for name in ("circuits", "summary"):
        text = getattr(frames, name).to_json()
        json.loads(text)
    for path in bench.out.rglob("*"):
        holds(path.is_relative_to(bench.out / "tables"), f"{path} is outside the tables' folder")
        holds(path.is_dir() or path.parent == bench.out / "tables", f"{path} is in another folder")


def _laid_out(plan: Plan, bench: Bench, search: bytes, run: bytes, judged: bytes) -> Path:
    """The folder of a sweep: as many results as the plan has searches."""
    folder = bench.inputs / "sweep"
    searched, scored = (record_text(discovery.record()).encode() for discovery in discoveries())
    for one in plan.searches:
        place = f"sweep/found/{one.folder}"
        bench.put(f"{place}/result.json", scored if one.threshold is None else searched)
        bench.put(f"{place}/run.json", run)
        bench.put(f"{place}/search.json", search)
    for judgement in judgements_of(plan, folder / "found"):
        own = {"problem": judgement.searches[0].problem.label, "method": judgement.searches[0].method}
        good = json_text(JUDGED | own).encode()
        bench.put(
            f"sweep/judged/{judgement.file}", judged if own["method"] == JUDGED["method"] else good
        )
    return folder


def _reported(plan: Plan, folder: Path) -> Any:
    material = read_material(plan, folder)
    frames = make_frames(material)
    report = Report(plan, material, frames, list(reductions(plan, material)), [])
    assert Outcome() and list(shown_tables(report))
    return frames, report


def targets() -> list[Target]:
    """Plans, and the folders of comparisons."""
    plans = st.one_of(written(DOCUMENTS, toml_text), written(DOCUMENTS, toml_text), damaged_bytes(FILES))
    run = {"stats": vars(discoveries()[0].stats)}
    good = [json_text(document).encode() for document in (SEARCH, run, JUDGED)]
    plan = toml_text(COMPARED).encode()
    named = st.builds(
        lambda model, title: COMPARED | {"problems": [{"name": "ioi", "model": model}], "title": title},
        st.sampled_from(TEXTS), st.sampled_from(TEXTS),
    ).map(lambda content: toml_text(content).encode("utf-8", "surrogatepass"))  # fmt: skip
    one_damaged = st.one_of(
        st.tuples(st.just(plan), written([SEARCH]), *map(st.just, good[1:])),
        st.tuples(st.just(plan), st.just(good[0]), written([run]), st.just(good[2])),
        st.tuples(st.just(plan), *map(st.just, good[:2]), written([JUDGED])),
        st.tuples(st.just(plan), *map(st.just, good[:2]), written([JUDGED])),
        st.tuples(st.just(plan), *map(st.just, good[:2]), damaged_bytes(good)),
        st.tuples(st.one_of(named, written([COMPARED], toml_text)), *map(st.just, good)),
    )
    return [
        Target("plan", plans, check_plan, files=FILES),
        Target("comparison", one_damaged, check_comparison, share=0.15, sample=25),
    ]
