"""``python -m pahq_exporters.run``: a patching run without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations

import pahq_plugin as pahq
from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.run import main, parse_head, run, table
from pahq_plugin.errors import ConfigError, PahqError, ResultError
from tests.helpers.graph_commands import fails
from tests.helpers.refused import Interrupted, refused
from tests.helpers.rounded import patched_logits
from tests.helpers.small import small_model

FULL = pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full")

EDGES = ["A0.7->MLP 0", "MLP 0->MLP 1"]


@pytest.fixture(scope="module")
def problem() -> pahq.Problem:
    return pahq.load_problem("ioi")


@pytest.fixture(scope="module")
def files(problem: pahq.Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs, and the prompts of the first batch."""
    folder, batch = tmp_path_factory.mktemp("run"), next(iter(problem.train_loader))
    for graph in ("dense", "sweep"):
        export_onnx(problem.model, folder / f"{graph}.onnx", graph=graph, precision=FULL)  # type: ignore[arg-type]
        export_onnx(problem.model, folder / f"{graph}8.onnx", graph=graph)  # type: ignore[arg-type]
    columns = (batch.clean, batch.corrupt, batch.answers, batch.wrong_answers)
    prompts = [
        {
            "clean": clean.tolist(),
            "corrupt": corrupt.tolist(),
            "answers": right.tolist(),
            "wrong_answers": wrong.tolist(),
        }
        for clean, corrupt, right, wrong in zip(*columns, strict=True)
    ]
    (folder / "prompts.json").write_text(json.dumps({"prompts": prompts}))
    return folder


def expected(problem: pahq.Problem, names: list[str]) -> tuple[float, float]:
    """KL from the clean output and logit difference at the last position, from the host."""
    model, batch = problem.model, next(iter(problem.train_loader))
    chosen = {edge for edge in model.edges if edge.name in names}
    with torch.no_grad():
        clean = model(batch.clean)[:, -1].double().log_softmax(-1)
    logits = patched_logits(model, batch.clean, src_ablations(model, batch.corrupt), chosen)[:, -1]
    patched = logits.double().log_softmax(-1)
    kl = float((clean.exp() * (clean - patched)).sum(-1).mean())
    right = logits.gather(1, torch.stack(list(batch.answers)).reshape(len(logits), -1)).mean(1)
    wrong = logits.gather(1, torch.stack(list(batch.wrong_answers)).reshape(len(logits), -1)).mean(1)
    return kl, float((right - wrong).mean())


def test_edges_patched_together(problem: pahq.Problem, files: Path) -> None:
    found = run(files / "dense.onnx", files / "prompts.json", EDGES)
    (one,) = found["runs"]
    kl, difference = expected(problem, EDGES)
    assert one["edges"] == EDGES and found["clean"]["kl_div"] == 0
    assert one["kl_div"] == pytest.approx(kl, rel=1e-4)
    assert one["logit_diff"] == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("graph", ["dense", "sweep"])
def test_each_edge_alone(problem: pahq.Problem, files: Path, graph: str) -> None:
    found = run(files / f"{graph}.onnx", files / "prompts.json", EDGES, each=True)
    for one, name in zip(found["runs"], EDGES, strict=True):
        assert one["edges"] == [name]
        assert one["kl_div"] == pytest.approx(expected(problem, [name])[0], rel=1e-4)


def test_all_edges_of_a_sweep(files: Path) -> None:
    found = run(files / "sweep8.onnx", files / "prompts.json", all_edges=True, limit=2)
    assert len(found["runs"]) == 1519 and found["prompts"] == 2
    assert "1499 more" in table(found)


@pytest.mark.parametrize("positional", [False, True])
def test_a_circuit_that_was_found(positional: bool, tmp_path: Path, files: Path) -> None:
    """``--result``: the loss of the circuit, which the host's model gives, too."""
    own = pahq.load_problem("ioi", positional=positional, batch_size=8)
    result = pahq.discover(own.model, own.train_loader, method="eap", n_edges=200)
    result.save(tmp_path / "found")
    batch = next(iter(own.train_loader))
    export_onnx(own.model, tmp_path / "g.onnx", precision=FULL)
    found = run(tmp_path / "g.onnx", files / "prompts.json", result=tmp_path / "found")
    out = {decision.edge for decision in result.decisions if not decision.kept}
    sources = src_ablations(own.model, batch.corrupt)
    logits = patched_logits(own.model, batch.clean, sources, out)[:, -1]
    with torch.no_grad():
        clean = own.model(batch.clean)[:, -1].double().log_softmax(-1)
    kl = (clean.exp() * (clean - logits.double().log_softmax(-1))).sum(-1).mean()
    (one,) = found["runs"]
    assert len(one["edges"]) == len(out) == len(own.model.edges) - 200
    assert one["kl_div"] == pytest.approx(float(kl), rel=1e-4)


def test_results_that_no_graph_runs(tmp_path: Path, files: Path) -> None:
    with pytest.raises(ResultError, match="result"):
        run(files / "dense.onnx", files / "prompts.json", result=tmp_path)
    own = pahq.load_problem("ioi")
    everything = {"method": "eap", "n_edges": len(own.model.edges)}
    zeroed = {"method": "acdc", "ablation": "zero", "threshold": 0.1}
    for settings, words in (
        (everything, "every edge"),
        (zeroed, "zero"),
    ):
        found = pahq.discover(own.model, own.train_loader, progress=False, **settings)
        found.save(tmp_path, force=True)
        with pytest.raises(ConfigError, match=words):
            run(files / "dense.onnx", files / "prompts.json", result=tmp_path)


def scored(problem: pahq.Problem, folder: Path) -> Path:
    """A result of 200 edges, saved."""
    result = pahq.discover(problem.model, problem.train_loader, method="eap", n_edges=200)
    result.save(folder, force=True)
    return folder


def test_results_of_another_model(tmp_path: Path, files: Path) -> None:
    prompts = files / "prompts.json"
    positional = pahq.load_problem("ioi", positional=True)
    with pytest.raises(ConfigError, match="--positional"):
        run(files / "dense.onnx", prompts, result=scored(positional, tmp_path / "found"))
    export_onnx(positional.model, tmp_path / "p.onnx", precision=FULL)
    plain = pahq.load_problem("ioi")
    with pytest.raises(ConfigError, match="--positional"):
        run(tmp_path / "p.onnx", prompts, result=scored(plain, tmp_path / "found"))
    with torch.no_grad():
        next(iter(plain.model.wrapped_model.parameters())).mul_(0.5)
    with pytest.raises(ConfigError, match="weights"):
        run(files / "dense.onnx", prompts, result=scored(plain, tmp_path / "found"))
    grouped = pahq.load_problem("ioi", separate_qkv=False)
    with pytest.raises(ConfigError, match="1,519"):
        run(files / "dense.onnx", prompts, result=scored(grouped, tmp_path / "found"))


def test_a_circuit_needs_a_dense_graph_or_edges_one_by_one(
    problem: pahq.Problem, tmp_path: Path, files: Path
) -> None:
    folder, prompts = scored(problem, tmp_path / "found"), files / "prompts.json"
    with pytest.raises(ConfigError, match="--each"):
        run(files / "sweep.onnx", prompts, result=folder)
    found = run(files / "sweep8.onnx", prompts, result=folder, each=True, limit=1)
    assert len(found["runs"]) == 1319


@pytest.mark.parametrize("how", ["edges", "result"])
def test_nothing_but_numpy_and_onnxruntime_is_imported(
    how: str, problem: pahq.Problem, files: Path
) -> None:
    code = (
        "import sys, pahq_exporters.run as r\n"
        "status = r.main(sys.argv[1:])\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'torch', 'onnx', 'safetensors', 'typer', 'rich', 'auto_circuit',\n"
        "                      'transformer_lens', 'pandas', 'scipy'}))\n"
        "sys.exit(status)"
    )
    chosen = ["--edges", EDGES[0]] if how == "edges" else ["--result", "found"]
    if how == "result":
        result = pahq.discover(problem.model, problem.train_loader, method="eap", n_edges=200)
        result.save(files / "found", force=True)
    arguments = ["dense8.onnx", "--prompts", "prompts.json", *chosen, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=files, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document, _, imported = done.stdout.rpartition("}\n")
    patched = json.loads(document + "}")["runs"][0]["edges"]
    assert patched == [EDGES[0]] if how == "edges" else len(patched) == 1319
    assert imported.strip() == "[]"


def test_the_table_names_clean_and_patched_runs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [files / "dense8.onnx", "--prompts", files / "prompts.json", "--edges", EDGES[0]]
    assert main([str(each) for each in arguments]) == 0
    out = capsys.readouterr().out
    assert "(clean)" in out and EDGES[0] in out and "CPUExecutionProvider" in out
    assert np.isfinite(float(out.splitlines()[-1].split()[-1]))


MODEL = small_model()

EDGE = "A0.1->MLP 1"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = export_onnx(MODEL, folder / "g.onnx")
    export_onnx(MODEL, folder / "late.onnx", start_layer=1)
    prompt = {"clean": [1, 2, 3], "corrupt": [4, 5, 6], "answers": [7], "wrong_answers": [8]}
    for name, change in {
        "p": {},
        "text": {"clean": "When"},
        "vocabulary": {"corrupt": [4, 5, 99]},
        "answers": {"answers": [40]},
        "large": {"answers": [10**40]},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps({"prompts": [prompt | change]}))
    return path


RUNS: list[tuple[list[str], str]] = [
    ([], "--edges"),
    (["--edges", EDGE, "--all"], "--all"),
    (["--edges", "A9.9->MLP 1"], "A9.9"),
    (["--edges", EDGE, "--head", "5.0"], "no head 0 in layer 5"),
    (["--edges", EDGE, "--head", "1.²"], "LAYER.HEAD"),
    (["--edges", EDGE, "--mode", "fast"], "speed, memory"),
    (["--edges", EDGE, "--threads", "0"], "threads"),
    (["--edges", EDGE, "--provider", "npu"], "npu"),
    (["--edges", EDGE, "--prompts", "text.json"], "token ids"),
    (["--edges", EDGE, "--prompts", "vocabulary.json"], "id 99"),
    (["--edges", EDGE, "--prompts", "answers.json"], "[40]"),
    (["--edges", EDGE, "--prompts", "large.json"], "outside the vocabulary"),
    (["--edges", EDGE, "--prompts", "missing.json"], "cannot be read"),
    (["--edges", EDGE, "--graph", "late.onnx"], "block 1"),
    (["--edges", EDGE, "--graph", "p.json"], "not an ONNX model"),
    (["--edges", EDGE, "--graph", "missing.onnx"], "no file"),
]


@pytest.mark.parametrize(("arguments", "word"), RUNS)
@pytest.mark.parametrize("light", [False, True])
def test_run_fails_in_one_line(
    arguments: list[str], word: str, light: bool, graph: Path, capsys: Any
) -> None:
    """Both commands, that of a deployment without PyTorch, too."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    path = graph.parent / options.pop("--graph", "g.onnx")
    prompts = graph.parent / options.pop("--prompts", "p.json")
    rest = [word for pair in options.items() for word in pair]
    rest += ["--all"] if "--all" in arguments else []
    given = [str(path), "--prompts", str(prompts), *rest]
    if not light:
        fails(word, "run", *given)
        return
    assert main(given) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and word in err and len(err.splitlines()) == 1 and not out
    with pytest.raises(PahqError):
        main([*given, "--debug"])


def test_a_limit_of_nothing_and_an_interrupt(graph: Path, capsys: Any, monkeypatch: Any) -> None:
    given = [str(graph), "--prompts", str(graph.parent / "p.json"), "--edges", EDGE]
    assert main([*given, "--limit", "0"]) == 1
    assert "limit" in capsys.readouterr().err
    assert main([*given, "--limit", "1"]) == 0
    monkeypatch.setattr(OnnxPatcher, "run", Interrupted(None, 1, KeyboardInterrupt()))
    capsys.readouterr()
    assert main(given) == 130 and capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("text", ["", "1", "²", "1.²", "-1.2", "1.2.3", " 1.2", "1." + "1" * 5000])
def test_a_head_is_two_numbers(text: str) -> None:
    assert parse_head("12.7") == (12, 7)
    with refused(ConfigError, "LAYER.HEAD"):
        parse_head(text)
