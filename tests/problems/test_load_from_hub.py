"""Problems on models of a hub, and a hub that cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_plugin.problems import load_problem
from tests.helpers import hub
from tests.helpers.problems import prompts_of, text_pair, user_file


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
