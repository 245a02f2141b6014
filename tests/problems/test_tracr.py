"""The Tracr problems: every prompt, its answers, and how the models are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pahq_plugin.problems import load_problem
from pahq_plugin.problems.tracr import TOKEN_IDS, tracr_prompts
from tests.helpers.problems import outputs


@pytest.mark.parametrize(("key", "n"), [("reverse", 3**5), ("xproportion", 4**5)])
def test_tracr_has_every_prompt_once_with_another_one(key: str, n: int) -> None:
    data = tracr_prompts(key, seed=0)
    assert len({tuple(prompt["clean"]) for prompt in data["prompts"]}) == n == len(data["prompts"])
    for prompt in data["prompts"]:
        assert prompt["clean"] != prompt["corrupt"]
        assert prompt["clean"][0] == prompt["corrupt"][0] == TOKEN_IDS[key]["BOS"]
    assert data != tracr_prompts(key, seed=1)


def test_tracr_answers_by_hand() -> None:
    ids = TOKEN_IDS["reverse"]
    for prompt in tracr_prompts("reverse", seed=0)["prompts"]:
        assert prompt["answers"] == [[token] for token in prompt["clean"][:0:-1]]
        wrong = prompt["wrong_answers"]
        assert all(a != b for a, b in zip(prompt["answers"], wrong, strict=True))
        assert {value for (value,) in wrong} <= {ids[1], ids[2], ids[3]}
    token = TOKEN_IDS["xproportion"]
    wanted = [token[word] for word in ("BOS", "x", "y", "x", "x", "z")]
    found = next(p for p in tracr_prompts("xproportion", 0)["prompts"] if p["clean"] == wanted)
    assert found["answers"] == [[1.0], [1 / 2], [2 / 3], [3 / 4], [3 / 5]]


def test_tracr_compiles_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX would take three quarters of a GPU's memory, and keep them."""
    import jax
    from auto_circuit.model_utils import tracr_model_utils

    compiled, seen = tracr_model_utils.get_tracr_model, []

    def spy(*arguments: Any) -> Any:
        seen.append(jax.config.jax_platforms)  # type: ignore[attr-defined]
        return compiled(*arguments)

    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    monkeypatch.setattr(tracr_model_utils, "get_tracr_model", spy)
    load_problem("tracr-xproportion")
    assert seen == [before or "cpu"] and jax.config.jax_platforms == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "batches", "size", "edges"), [("reverse", 11, 11, 8), ("xproportion", 8, 64, 15)]
)
def test_tracr_answers_are_what_the_model_computes(
    key: str, batches: int, size: int, edges: int
) -> None:
    problem = load_problem(f"tracr-{key}")
    assert (len(problem.train_loader), len(problem.test_loader)) == (batches, batches)
    assert problem.metric == "mse"
    assert problem.model.seq_len == 6
    assert problem.true_edges is not None and len(problem.true_edges) == edges
    assert problem.task.true_edges == problem.true_edges <= problem.model.edges
    for loader in (problem.train_loader, problem.test_loader):
        for batch in loader:
            assert batch.answers.shape == (size, 5, 1)
            computed = outputs(problem, batch)
            if key == "reverse":
                assert torch.equal(computed.argmax(-1, keepdim=True), batch.answers)
            else:
                assert torch.allclose(computed, batch.answers, atol=1e-5)


@pytest.mark.parametrize("key", TOKEN_IDS)
def test_tracr_token_ids_are_the_encoders(key: Any) -> None:
    from auto_circuit.model_utils.tracr_model_utils import get_tracr_model

    encoder = get_tracr_model(key, "cpu")[1].input_encoder
    assert {**TOKEN_IDS[key], "compiler_pad": encoder.encoding_map["compiler_pad"]} == (
        encoder.encoding_map
    )
