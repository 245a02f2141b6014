"""Problems on models of a hub, and a hub that cannot be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformer_lens import HookedTransformer

from pahq_plugin.errors import ProblemError
from pahq_plugin.problems import bundled_model, load_problem
from tests.helpers.problems import prompts_of, text_pair, user_file
from tests.zoo import hub


@pytest.mark.parametrize(("name", "edges"), [("ioi", 739), ("greater-than", 235)])
def test_hub_problem_with_official_circuit(
    monkeypatch: pytest.MonkeyPatch, name: str, edges: int
) -> None:
    calls = hub.install(monkeypatch, n_layers=12, n_heads=12)
    problem = load_problem(name, model="gpt2", device="cpu")
    (call,) = calls
    assert call[0] == "gpt2"
    assert call[1]["fold_ln"] and call[1]["center_writing_weights"] and call[1]["center_unembed"]
    assert len(problem.model.edges) == 32491
    assert problem.true_edges is not None and len(problem.true_edges) == edges
    assert next(iter(problem.train_loader)).clean.shape[0] == 16
    assert problem.task.key == f"pahq: {name} (gpt2)"


def test_hub_prompts_begin_with_bos_and_positions_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.install(monkeypatch, n_layers=4, n_heads=8)
    problem = load_problem("docstring", positional=True, device="cpu")
    assert problem.task.key == "pahq: docstring (attn-only-4l)"
    assert problem.true_edges is not None
    at, tokenizer = problem.train_loader.word_idxs, hub.small_tokenizer()
    for row in prompts_of(problem):
        clean = tokenizer.convert_ids_to_tokens(row)
        assert clean[0] == hub.END and hub.END not in clean[1:]
        assert clean[at["param_3"]] == clean[-1] == "param"
        assert clean[at["A_def"]] == clean[at["A_doc"]]
    ends = {edge.seq_idx for edge in problem.true_edges if edge.dest.name == "Resid End"}
    assert ends == {problem.model.seq_len - 1} == {at["param_3"]}


def test_hub_model_without_published_circuit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.install(monkeypatch)
    assert load_problem("ioi", model="pythia-70m", device="cpu").true_edges is None
    assert load_problem("ioi", model="gpt2", separate_qkv=False, device="cpu").true_edges is None
    pair = text_pair(clean=" Mary went to", corrupt=" John went to", wrong_answers=[" John"])
    file = user_file(tmp_path, {"prompts": [pair] * 32})
    own = load_problem("induction", model="gpt2", prompts=file, positional=True, device="cpu")
    assert own.true_edges is None and own.model.seq_len == 4


@pytest.mark.parametrize(
    ("name", "folds"), [("gpt2", True), ("mixtral", False), ("Qwen/Qwen2-0.5B", True)]
)
def test_norms_are_folded_where_transformer_lens_can(
    monkeypatch: pytest.MonkeyPatch, name: str, folds: bool
) -> None:
    asked: dict[str, Any] = {}

    def load(_: str, **options: Any) -> HookedTransformer:
        asked.update(options)
        raise OSError("no hub")

    monkeypatch.setattr(HookedTransformer, "from_pretrained", load)
    monkeypatch.setattr("pahq_plugin.models.load._hub_weights", lambda official: None)
    with pytest.raises(ProblemError):
        load_problem("ioi", model=name)
    assert asked["fold_ln"] == folds


@pytest.mark.parametrize("offline", ["1", "0"])
def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, offline: str) -> None:
    def unreachable(*_: Any, **__: Any) -> HookedTransformer:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(HookedTransformer, "from_pretrained", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(ProblemError, match="'gpt2' could not be loaded") as caught:
        load_problem("ioi", model="gpt2")
    assert "\n" not in str(caught.value)
    assert ("HF_HUB_OFFLINE is set" in str(caught.value)) == (offline == "1")


@pytest.mark.full
def test_offline_without_a_cache_is_one_error(tmp_path: Path) -> None:
    """What TransformerLens itself raises then, not a stand-in for it."""
    code = (
        "from pahq_plugin.problems import load_problem\n"
        "from pahq_plugin.errors import ProblemError\n"
        "for name, model in (('ioi', 'gpt2'), ('docstring', None)):\n"
        "    try: load_problem(name, model=model)\n"
        "    except ProblemError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    source = str(Path(bundled_model.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": source, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ran.stdout.strip().splitlines()
    assert len(lines) == 2
    assert all("could not be loaded" in line and "HF_HUB_OFFLINE is set" in line for line in lines)
