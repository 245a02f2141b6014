"""``pahq discover``: its table, JSON, files and options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pahq_plugin as pahq
from tests.helpers.commands import command, strict_json, succeeds
from tests.helpers.replay import sequential_acdc

XPROPORTION = ["discover", "tracr-xproportion", "--threshold", "0.01"]


def test_the_table_is_readable(xproportion: tuple[Path, str]) -> None:
    folder, text = xproportion
    record = json.loads((folder / "result.json").read_text())
    kept = [entry for entry in record["decisions"] if entry["kept"]]
    assert f"{len(kept)} of {len(record['decisions'])} edges kept by pahq, threshold 0.01, mse" in (
        " ".join(text.split())
    )
    for entry in kept:
        line = next(line for line in text.splitlines() if f"{entry['edge']} @{entry['seq_idx']}" in line)
        assert f"{entry['effect']:.3g}" in line and "█" in line
        assert ("FP32" if entry["exact"] else "screened") in line
    assert "Busiest nodes: " in text and "peak memory" in text
    assert "pahq show" in text and "saved in" in text
    assert max(len(line) for line in text.splitlines()) <= 120 + len(str(folder)) * 2


def test_top_limits_the_table() -> None:
    text = succeeds(*XPROPORTION, "--method", "acdc", "--top", "3")
    assert text.count("█") > 0 and "Strongest 3 of 13 kept edges" in text
    assert sum("█" in line for line in text.splitlines()) == 3
    assert "█" not in succeeds(*XPROPORTION, "--method", "acdc", "--top", "0")


def test_json_is_the_whole_result() -> None:
    result = command(*XPROPORTION, "--method", "acdc", "--json")
    assert result.exit_code == 0
    record = strict_json(result.stdout)
    problem = pahq.load_problem("tracr-xproportion")
    expected = sequential_acdc(problem.model, problem.train_loader, threshold=0.01, metric="mse")
    assert record["schema"] == "pahq-discovery/1"
    assert record["model"]["edges"] == len(expected) == len(record["decisions"])
    for entry, decision in zip(record["decisions"], expected, strict=True):
        assert (entry["edge"], entry["seq_idx"]) == (decision.edge.name, decision.edge.seq_idx)
        assert entry["kept"] == decision.kept and entry["exact"]
        assert entry["effect"] == pytest.approx(decision.effect, rel=1e-4, abs=1e-6)
    settings = record["settings"]
    assert settings["method"] == "acdc" and settings["metric"] == "mse"
    assert settings["threshold"] == 0.01 and settings["seed"] == 0
    assert set(record["stats"]) >= {"evaluations", "seconds", "peak_bytes", "re_evaluations"}


def test_json_of_an_infinite_guard_is_json() -> None:
    record = strict_json(succeeds(*XPROPORTION, "--guard", "inf", "--json"))
    assert all(entry["exact"] for entry in record["decisions"])


def test_the_device_is_passed_on() -> None:
    chosen = [*XPROPORTION, "--method", "acdc", "--json"]
    named = strict_json(succeeds(*chosen, "--device", "cpu"))
    assert named["decisions"] == strict_json(succeeds(*chosen))["decisions"]
    refused = command(*chosen, "--device", "meta")
    assert refused.exit_code == 1 and "device='meta'" in refused.stderr


def test_precision_flags_change_the_default() -> None:
    flags = ["--low", "fp8_e5m2", "--mlp", "fp32", "--scale", "head", "--policy", "uniform",
             "--guard", "0.5"]  # fmt: skip
    precision = json.loads(succeeds(*XPROPORTION, *flags, "--json"))["settings"]["precision"]
    assert {name: precision[name] for name in ("low", "mlp", "scale", "policy", "guard")} == {
        "low": "fp8_e5m2", "mlp": "fp32", "scale": "head", "policy": "uniform", "guard": 0.5,
    }  # fmt: skip
    one = json.loads(succeeds(*XPROPORTION, "--mlp", "fp32", "--json"))["settings"]["precision"]
    assert one["mlp"] == "fp32" and one["policy"] == "investigated_head"


def test_what_out_holds_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "result"
    acdc = [*XPROPORTION, "--method", "acdc", "--out", out]
    succeeds(*acdc)
    assert sorted(path.name for path in out.iterdir()) == ["result.json", "run.json"]
    old = (out / "result.json").read_bytes()
    again = command("discover", "tracr-xproportion", "--threshold", "0.1", "--out", out)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ") and "--force" in again.stderr
    assert (out / "result.json").read_bytes() == old
    succeeds("discover", "tracr-xproportion", "--threshold", "0.1", "--out", out, "--force")
    assert (out / "result.json").read_bytes() != old


def test_methods_that_score_edges(tmp_path: Path) -> None:
    for method in ("eactp", "eap", "eap-ig", "Random", "Official Circuit"):
        arguments = ["discover", "tracr-reverse", "--method", method, "--n-edges", "8"]
        record = strict_json(succeeds(*arguments, "--json"))
        assert record["settings"]["scored"] and record["settings"]["n_edges"] == 8
        assert sum(entry["kept"] for entry in record["decisions"]) >= 8
    table = succeeds("discover", "tracr-reverse", "--method", "Official Circuit")
    assert "score" in table and "decided on" not in table


def test_metric_and_steps_of_attribution() -> None:
    chosen = ["discover", "ioi", "--method", "eap-ig", "--n-edges", "20", "--json"]
    default = strict_json(succeeds(*chosen))
    same = strict_json(succeeds(*chosen, "--metric", "logit_diff", "--steps", "5"))
    assert default["settings"] == same["settings"] and default["decisions"] == same["decisions"]
    other = strict_json(succeeds(*chosen, "--metric", "kl_div", "--steps", "2"))
    assert (other["settings"]["metric"], other["settings"]["steps"]) == ("kl_div", 2)
    problem = pahq.load_problem("ioi")
    expected = pahq.discover(
        problem.model, problem.train_loader, method="eap-ig", metric="kl_div", steps=2, n_edges=20,
        progress=False,
    )  # fmt: skip
    kept = [entry["edge"] for entry in other["decisions"] if entry["kept"]]
    assert set(kept) == {edge.name for edge in expected.circuit}


def test_batches_0_is_all_of_them() -> None:
    arguments = [*XPROPORTION, "--method", "acdc", "--json"]
    whole = json.loads(succeeds(*arguments, "--batches", "0"))
    assert whole["settings"]["batches"] is None
    one = json.loads(succeeds(*arguments))
    assert [e["effect"] for e in whole["decisions"]] != [e["effect"] for e in one["decisions"]]


def own_prompts(path: Path) -> Path:
    """Prompts of random words of the bundled model, half of which differ in the last."""
    pairs = []
    for i in range(24):
        clean = [0, *(10 + (i * 7 + j * 3) % 20 for j in range(1, 6))]
        corrupt = [*clean[:3], *(10 + (token + 5) % 20 for token in clean[3:])]
        pairs.append({"clean": clean, "corrupt": corrupt, "answers": [5], "wrong_answers": [6]})
    path.write_text(json.dumps({"prompts": pairs}))
    return path


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    file = own_prompts(tmp_path / "prompts.json")
    arguments = ["discover", "ioi", "--prompts", file, "--threshold", "0.2", "--method", "acdc"]
    record = strict_json(succeeds(*arguments, "--json"))
    problem = pahq.load_problem("ioi", prompts=file)
    expected = pahq.discover(
        problem.model, problem.train_loader, method="acdc", threshold=0.2, progress=False
    )
    effects = [decision.effect for decision in expected.decisions]
    assert [entry["effect"] for entry in record["decisions"]] == effects
    generated = pahq.load_problem("ioi")
    clean = next(iter(problem.train_loader)).clean
    assert clean.shape[1] == 6 != next(iter(generated.train_loader)).clean.shape[1]


@pytest.mark.parametrize(("batches", "said"), [("1", True), ("0", False), ("2", False)])
def test_how_many_of_ones_own_prompts_are_searched_on(batches: str, said: bool, tmp_path: Path) -> None:
    file = own_prompts(tmp_path / "prompts.json")
    arguments = ["discover", "ioi", "--prompts", file, "--batch-size", "4", "--batches", batches]
    done = command(*arguments, "--threshold", "0.2", "--method", "acdc", "--top", "0")
    assert done.exit_code == 0
    assert ("taking 1 of 2 batches of 4; --batches 0 takes all" in done.stderr) is said


def test_nothing_is_written_without_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeeds(*XPROPORTION, "--method", "acdc")
    assert list(tmp_path.iterdir()) == []
