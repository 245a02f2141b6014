"""The methods of a comparison: each really runs, does what it says, and refuses what it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.prune_algos import PRUNE_ALGO_DICT
from torch import Tensor

import pahq_plugin as pahq
from pahq_plugin.compare import baselines
from pahq_plugin.compare.baselines import BASELINES, baseline_names, get_baseline
from pahq_plugin.compare.plan import ProblemSpec, Search
from pahq_plugin.compare.work import cost, find
from pahq_plugin.discovery.methods import OWN_METHODS, methods
from pahq_plugin.errors import ConfigError
from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.formats import FORMATS
from pahq_plugin.results.files import RESULT_FILE, read_record
from tests.helpers.replay import canonical_order

REVERSE, FRACTION, IOI = (ProblemSpec(n) for n in ("tracr-reverse", "tracr-xproportion", "ioi"))
FAST: dict[str, dict[str, Any]] = {
    "ig": {"integrated_grad_samples": 2},
    "edge-probing": {"epochs": 2},
    "subnetwork-probing": {"epochs": 2},
}


def search_of(method: str, problem: ProblemSpec = FRACTION, **changes: Any) -> Search:
    sweeps = get_baseline(method).sweeps
    given = Search(problem, method, 0.01 if sweeps else None, 0, options=FAST.get(method, {}))
    return replace(given, **changes)


def found(search: Search, folder: Path) -> dict[str, Any]:
    """The record that a search leaves."""
    find(search, folder, 1)
    assert [path.name for path in folder.iterdir()] == [search.folder]
    return read_record(folder / search.folder / RESULT_FILE)


def kept(record: dict[str, Any]) -> set[tuple[str, int | None]]:
    return {(d["edge"], d["seq_idx"]) for d in record["decisions"] if d["kept"]}


def scores(record: dict[str, Any]) -> dict[tuple[str, int | None], float]:
    return {(d["edge"], d["seq_idx"]): d["effect"] for d in record["decisions"]}


@cache
def problem(name: str) -> pahq.Problem:
    return pahq.load_problem(name)


# Names --------------------------------------------------------------------------------------------


def test_every_name_is_a_baseline() -> None:
    for name in [*baseline_names(), *(key for key in methods() if key not in OWN_METHODS)]:
        baseline = get_baseline(name)
        assert baseline.name == name
        assert not baseline.method.key or baseline.method.key in PRUNE_ALGO_DICT
        assert baseline.needs_true_edges == (name in ("ground-truth", "Official Circuit"))
    sweeping = {name for name in BASELINES if get_baseline(name).sweeps}
    assert sweeping == {"pahq", "acdc", "pahq-paper", "rtn-q", "host-acdc"}
    assert get_baseline("ACDC").sweeps and get_baseline("MSE ACDC").sweeps
    once = {"tao_bases": [0.1], "tao_exps": [0]}
    for name, target in (
        ("ACDC", {"faithfulness_target": "kl_div"}),
        ("MSE ACDC", {}),
    ):
        assert get_baseline(name).fitted("kl_div", 0.1, True, {}).options == once | target
    assert baselines.EXACT in BASELINES


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fp32"])
def test_formats_screen_heads_and_mlps(name: str) -> None:
    guarded, bare = get_baseline(f"pahq@{name}"), get_baseline(f"unguarded@{name}")
    assert guarded.sweeps and bare.sweeps and guarded.method.name == bare.method.name == "pahq"
    assert guarded.precision and bare.precision
    assert (guarded.precision.guard, bare.precision.guard) == ("auto", 0)
    assert replace(guarded.precision, guard=0.0) == bare.precision
    expected = ("int8", "int8", "int4") if name == "int4" else (name, name, bare.precision.weights)
    assert (bare.precision.low, bare.precision.mlp, bare.precision.weights) == expected


@pytest.mark.parametrize(
    "name", ["", "@", "@int8", "pahq@fp32", "pahq@INT8", "eap@int8", "pahq@int8@int8"]
)
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="method") as error:
        get_baseline(name)
    assert repr(name) in str(error.value) and "host-acdc" in str(error.value)
    assert "\n" not in str(error.value)


# Every one runs -----------------------------------------------------------------------------------

REFUSED = {(name, FRACTION): "numbers" for name in ("eap-ig", "eap-ig-activations")}


QUICK = ("eap", "eap-ig", "ig", "act-mag", "ground-truth")
"""What also runs on the larger model in the normal tests."""
EVERY = [*BASELINES, "pahq@int8", "pahq@int4", "unguarded@fp8_e4m3"]
RUNS = [
    *(pytest.param(FRACTION, name, id=f"{FRACTION.name}-{name}") for name in EVERY),
    *(
        pytest.param(
            REVERSE, name, id=f"{REVERSE.name}-{name}", marks=[] if name in QUICK else pytest.mark.full
        )
        for name in EVERY
    ),
]


@pytest.mark.parametrize(("spec", "name"), RUNS)
def test_every_baseline_runs(spec: ProblemSpec, name: str, tmp_path: Path) -> None:
    if (name, spec) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name, spec]):
            find(search_of(name, spec), tmp_path, 1)
        assert not list(tmp_path.iterdir())
        return
    search = search_of(name, spec)
    record = found(search, tmp_path)
    edges = len(problem(spec.name).model.edges)
    assert len(record["decisions"]) == edges and len(set(scores(record).values())) > 1
    assert record["settings"]["method"] == get_baseline(name).method.name
    assert record["settings"].get("threshold") == (None if record["settings"]["scored"] else 0.01)
    spent = cost(tmp_path / search.folder)
    assert spent["seconds"] > 0 and spent["extra_bytes"] >= 0 and spent["threads"] == 1
    assert spent["metric"] == "mse" and spent["search"] == json.loads(json.dumps(search.key()))
    assert spent["options"].items() >= search.options.items()


@pytest.mark.parametrize(
    "name",
    ["eap", "eap-ig", "ig", "act-mag", "random", "host-acdc", "edge-probing", "subnetwork-probing"],
)
def test_equal_searches_give_equal_bytes(name: str, tmp_path: Path) -> None:
    spec = FRACTION if name == "host-acdc" else REVERSE
    texts = []
    for folder in ("a", "b"):
        search = search_of(name, spec, seed=2)
        found(search, tmp_path / folder)
        texts.append((tmp_path / folder / search.folder / RESULT_FILE).read_bytes())
    assert texts[0] == texts[1]


def test_the_largest_seed_is_no_trouble(tmp_path: Path) -> None:
    for name in ("random", "pahq"):
        found(search_of(name, seed=2**63 - 1), tmp_path / name)


# What they compute --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [REVERSE, FRACTION], ids=lambda spec: spec.name)
@pytest.mark.parametrize("threshold", [0.001, pytest.param(0.05, marks=pytest.mark.full)])
def test_the_hosts_loop_finds_our_circuit(spec: ProblemSpec, threshold: float, tmp_path: Path) -> None:
    circuits = [
        kept(found(search_of(name, spec, threshold=threshold), tmp_path / name))
        for name in ("acdc", "host-acdc")
    ]
    assert circuits[0] == circuits[1]
    assert 0 < len(circuits[0]) < len(problem(spec.name).model.edges)


def test_the_hosts_loop_runs_at_one_threshold(tmp_path: Path) -> None:
    """The host's function called by hand, in the canonical order of edges."""
    record = found(search_of("host-acdc", threshold=0.02), tmp_path)
    given = pahq.load_problem("tracr-xproportion")
    given.model.edges = canonical_order(given.model)  # type: ignore[assignment]
    theirs = acdc_prune_scores(
        given.model, given.train_loader, None, tao_exps=[0], tao_bases=[0.02], faithfulness_target="mse"
    )
    never = {(e.name, e.seq_idx) for e in given.model.edges if e.prune_score(theirs).isinf()}
    assert kept(record) == never


def hosts_scores(name: str, key: str, **options: Any) -> dict[tuple[str, int | None], float]:
    given = problem(name)
    function = partial(PRUNE_ALGO_DICT[key].func, **options)
    first = next(iter(given.train_loader))
    values: dict[str, Tensor] = function(given.model, [first], None)  # type: ignore[arg-type]
    return {(e.name, e.seq_idx): float(e.prune_score(values)) for e in canonical_edges(given.model)}


@pytest.mark.parametrize(
    ("name", "spec", "key", "options"),
    [
        ("act-mag", FRACTION, "Act Mag", {}),
        ("act-mag", IOI, "Act Mag", {}),
        ("eap", REVERSE, "Edge Answer Logit Diff Gradient At Clean", {}),
        ("eap", FRACTION, "Edge Answer Logit MSE Gradient At Clean", {}),
        ("ig", REVERSE, "Integrated Edge Gradients (Logit Diff)", FAST["ig"]),
        (
            "ig",
            FRACTION,
            "Integrated Edge Gradients (Logit Diff)",
            FAST["ig"] | {"answer_function": "mse"},
        ),
    ],
    ids=lambda value: str(getattr(value, "name", value))[:20],
)
def test_scores_are_the_hosts(
    name: str, spec: ProblemSpec, key: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Called directly on the first batch."""
    ours, theirs = (
        scores(found(search_of(name, spec), tmp_path)),
        hosts_scores(spec.name, key, **options),
    )
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-7)


def test_the_published_circuit_is_kept_whole(tmp_path: Path) -> None:
    true = {(edge.name, edge.seq_idx) for edge in problem("tracr-reverse").true_edges or ()}
    assert kept(found(search_of("ground-truth", REVERSE), tmp_path)) == true


def test_other_seeds_draw_other_scores(tmp_path: Path) -> None:
    records = [found(search_of("random", seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    assert scores(records[0]) != scores(records[1])


def test_all_batches_are_more_than_one(tmp_path: Path) -> None:
    records = [found(search_of("act-mag", REVERSE, batches=n), tmp_path / str(n)) for n in (1, None)]
    assert scores(records[0]) != scores(records[1])


@pytest.mark.parametrize("name", ["edge-probing", "subnetwork-probing"])
@pytest.mark.parametrize(
    ("spec", "target"), [(IOI, "kl_div"), (REVERSE, "kl_div"), (FRACTION, "mse")], ids=range(3)
)
def test_probing_stays_faithful_to_something_of_meaning(
    name: str, spec: ProblemSpec, target: str
) -> None:
    """The host's ``mse`` compares outputs with answers, which must be numbers for that."""
    given = problem(spec.name)
    numbers = spec is FRACTION
    method = get_baseline(name).fitted(given.metric, None, not numbers, {})
    assert method.options["faithfulness_target"] == target


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (search_of("ground-truth", IOI), "ioi"),
        (search_of("eap-ig", FRACTION), "eap-ig.*numbers"),
        (search_of("acdc", options={"epochs": 1}), "acdc.*options"),
        (search_of("pahq@int8", options={"epochs": 1}), "pahq@int8.*options"),
        (search_of("eap", REVERSE, options={"epochs": 1}), "eap.*options"),
        (search_of("edge-probing", options={"epoch": 1}), "'epoch'.*epochs"),
        (search_of("act-mag", options={"epochs": 1}), "'epochs'"),
        (search_of("act-mag", ablation="zero"), "act-mag.*resample"),
        (search_of("acdc", ablation="magic"), "'magic'"),
        (search_of("acdc", batches=99), "batches=99"),
        (search_of("acdc", seed=-1), "seed"),
    ],
    ids=range(11),
)
def test_what_a_method_cannot_do_is_refused(search: Search, message: str, tmp_path: Path) -> None:
    with pytest.raises(pahq.PahqError, match=message) as error:
        find(search, tmp_path, 1)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_ours_take_every_ablation(tmp_path: Path) -> None:
    circuits = []
    for name in ("resample", "zero"):
        circuits.append(kept(found(search_of("acdc", REVERSE, ablation=name), tmp_path / name)))
    assert circuits[0] != circuits[1]
