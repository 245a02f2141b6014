"""The command ``pahq``: tables, JSON, files and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner, Result

import pahq_plugin as pahq
from pahq_plugin.cli.app import app
from pahq_plugin.errors import ConfigError
from tests.helpers.replay import sequential_acdc

COMMANDS = ["discover", "show", "doctor"]
XPROPORTION = ["discover", "tracr-xproportion", "--threshold", "0.01"]


def command(*arguments: str | Path, width: int = 120) -> Result:
    runner = CliRunner(env={"COLUMNS": str(width), "TERM": "dumb"})
    return runner.invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: str | Path) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def strict_json(text: str) -> Any:
    """JSON by its standard, in which NaN and infinity do not exist."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A saved result, and what was printed when it was found."""
    folder = tmp_path_factory.mktemp("results") / "deep" / "xproportion"
    return folder, succeeds(*XPROPORTION, "--out", folder)


# discover -----------------------------------------------------------------------------------------


def test_the_table_is_readable(saved: tuple[Path, str]) -> None:
    folder, text = saved
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
    assert refused.exit_code == 1 and "device='meta' cannot be used here" in refused.stderr


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
    for method in ("eap", "eap-ig", "Random", "Official Circuit"):
        arguments = ["discover", "tracr-reverse", "--method", method, "--n-edges", "8"]
        record = strict_json(succeeds(*arguments, "--json"))
        assert record["settings"]["scored"] and record["settings"]["n_edges"] == 8
        assert sum(entry["kept"] for entry in record["decisions"]) >= 8
    table = succeeds("discover", "tracr-reverse", "--method", "Official Circuit")
    assert "score" in table and "decided on" not in table


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


# show ---------------------------------------------------------------------------------------------


def test_show_prints_what_discover_printed(saved: tuple[Path, str]) -> None:
    folder, printed = saved
    text = succeeds("show", folder)
    assert text and printed.startswith(text)
    assert succeeds("show", folder / "result.json") == text
    assert sum("█" in line for line in succeeds("show", folder, "--top", "2").splitlines()) == 2


def test_show_as_json_is_the_file(saved: tuple[Path, str]) -> None:
    folder, _ = saved
    record = strict_json(succeeds("show", folder, "--json"))
    stats = record.pop("stats")
    assert record == json.loads((folder / "result.json").read_text())
    assert stats == json.loads((folder / "run.json").read_text())["stats"]


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


HEAVY = "{'torch', 'numpy', 'pandas', 'transformers', 'transformer_lens', 'auto_circuit'}"


def without_heavy_imports(*arguments: str | Path) -> str:
    """Run a command in a process of its own and find nothing heavy imported at its end."""
    code = f"""if True:
        import sys
        from pahq_plugin.cli.app import app
        try:
            app({[str(argument) for argument in arguments]!r})
        except SystemExit as end:
            assert not end.code, end.code
        loaded = {HEAVY} & set(sys.modules)
        assert not loaded, loaded
        """
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_show_imports_nothing_heavy(saved: tuple[Path, str]) -> None:
    folder, _ = saved
    assert "edges kept by pahq" in without_heavy_imports("show", folder)
    assert json.loads(without_heavy_imports("show", folder, "--json"))["decisions"]


# doctor and help ----------------------------------------------------------------------------------


def test_doctor_says_what_is_here() -> None:
    text = succeeds("doctor")
    assert version("torch") in text and "fp8_e4m3" in text and "Default precision" in text
    found = strict_json(succeeds("doctor", "--json"))
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["auto-circuit"] == "1.0.1"
    assert set(found["formats"]) == {"fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"}
    assert found["formats"]["fp32"] is True and found["python"]
    if found["device"] == "cpu":
        assert found["kernels"] == ({"int8": "vnni"} if found["formats"]["int8"] else {})
    assert isinstance(found["advice"], list)


def test_doctor_says_what_is_missing_for_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    for present in (True, False):
        monkeypatch.setattr("pahq_plugin.cli.doctor.find_spec", lambda name, here=present: here or None)
        assert ("pahq-plugin[onnx]" in succeeds("doctor")) is not present


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    for flag in ("--help", "-h"):
        text = succeeds(name, flag)
        assert "Usage: " in text and "--json" in text and "--debug" in text
        assert name in succeeds(flag)


def test_help_imports_nothing_heavy() -> None:
    text = without_heavy_imports("--help")
    assert all(name in text for name in COMMANDS)
    without_heavy_imports("discover", "--help")


def test_the_module_is_the_command() -> None:
    done = python("-X", "importtime", "-m", "pahq_plugin", "--help")
    assert done.returncode == 0 and "discover" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.endswith(("| torch", "| numpy"))]
    assert "pahq_plugin.cli.app" in done.stderr


# Errors -------------------------------------------------------------------------------------------


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("discover", "chess").exit_code == 1
    assert command("discover", "ioi", "--nonsense").exit_code == 2
    assert command("discover", "ioi", "--threshold", "much").exit_code == 2
    assert command("nonsense").exit_code == 2
    for error, code in ((KeyboardInterrupt(), 130), (MemoryError(), 1), (OSError("full"), 1),
                        (ZeroDivisionError("x"), 2)):  # fmt: skip
        monkeypatch.setattr("pahq_plugin.cli.doctor.examine", raiser(error))
        result = command("doctor")
        assert result.exit_code == code
        assert len(result.stderr.splitlines()) == 1 and result.stdout == ""


def raiser(error: BaseException) -> Any:
    def fail(*arguments: object) -> NoReturn:
        raise error

    return fail


def test_an_error_of_several_lines_is_printed_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_plugin.cli.doctor.examine", raiser(RuntimeError("one\n two\nthree")))
    result = command("doctor")
    assert result.exit_code == 2
    assert result.stderr == "error: unexpected RuntimeError: one two three; --debug shows where\n"


def test_debug_raises_the_error() -> None:
    result = command("discover", "ioi", "--threshold", "-1", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, ConfigError)
    plain = command("discover", "ioi", "--threshold", "-1")
    assert plain.exit_code == 1 and isinstance(plain.exception, SystemExit)
    assert plain.stderr.splitlines() == [f"error: {result.exception}"]


def test_nothing_is_written_without_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeeds(*XPROPORTION, "--method", "acdc")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: Any) -> None:
    """Where there is a checkpoint; and such a folder is not taken for one without a result."""

    def stopped(*_: Any, **given: Any) -> None:
        if with_checkpoint:
            given["checkpoint"].parent.mkdir()
            given["checkpoint"].write_text("decisions")
        raise KeyboardInterrupt

    monkeypatch.setattr("pahq_plugin.discovery.discover.discover", stopped)
    out = tmp_path / "long"
    for with_checkpoint in (False, True):
        done = CliRunner().invoke(app, ["discover", "ioi", "--out", str(out)])
        assert done.exit_code == 130 and done.stderr.startswith("interrupted")
        file = out / "checkpoint.safetensors"
        assert (f"run the same command again to continue from {file}" in done.stderr) is with_checkpoint
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert shown.exit_code == 1 and "has not finished" in shown.stderr
