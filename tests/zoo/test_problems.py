"""``load_problem``: the bundled model and its problems, the Tracr problems, and what is refused."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pahq_plugin.errors import ModelError, ProblemError
from pahq_plugin.models import load as host_problems
from pahq_plugin.problems import bundled_model, load_problem, problem_names, vocabulary
from pahq_plugin.problems.generated import TASKS, generate
from pahq_plugin.problems.tracr import TOKEN_IDS
from tests.helpers.problems import outputs, prompts_of


@pytest.mark.parametrize("task", TASKS)
def test_bundled_model_is_right_on_held_out_prompts(task: str) -> None:
    model = bundled_model.load()
    prompts = generate(task, 300, seed=11, split="test")["prompts"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt["clean"] for prompt in prompts]))[:, -1]
    hits = [int(row.argmax()) in prompt["answers"] for row, prompt in zip(logits, prompts, strict=True)]
    assert sum(hits) / len(hits) >= 0.97
    # Of greater-than's years "99" is always right, so that only the probabilities say something.
    mass = [
        float(row.softmax(-1)[prompt["answers"]].sum())
        for row, prompt in zip(logits, prompts, strict=True)
    ]
    assert sum(mass) / len(mass) >= 0.97


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


@pytest.mark.parametrize("task", TASKS)
def test_bundled_problem(task: str) -> None:
    problem = load_problem(task)
    assert problem.name == task
    assert (len(problem.train_loader), len(problem.test_loader)) == (4, 8)
    assert len({tuple(row) for row in prompts_of(problem)}) == 12 * 8
    assert (problem.metric, problem.true_edges) == ("kl_div", None)
    assert problem.model.seq_len is None and problem.model.separate_qkv
    assert len(problem.model.edges) == 1519
    assert not any(module.training for module in problem.model.modules())
    assert not any(parameter.requires_grad for parameter in weights(problem.model))
    batch = next(iter(problem.train_loader))
    right = outputs(problem, batch).argmax(-1).tolist()
    assert all(word in row for word, row in zip(right, batch.answers, strict=True))


def weights(model: Any) -> list[torch.nn.Parameter]:
    named = model.wrapped_model.named_parameters()
    return [parameter for name, parameter in named if not name.endswith("patch_mask")]


def test_flags_follow_separate_qkv() -> None:
    for separate, edges in ((True, 1519), (False, 591)):
        model = load_problem("ioi", separate_qkv=separate).model
        assert model.cfg.use_attn_result and model.cfg.use_hook_mlp_in
        assert model.cfg.use_split_qkv_input is separate
        assert model.cfg.use_attn_in is not separate
        assert len(model.edges) == edges


def test_positional_problem_has_edges_of_every_position() -> None:
    model = load_problem("induction", positional=True).model
    assert model.seq_len == 16
    assert len(model.edges) == 16 * 1519


def test_each_problem_has_a_model_of_its_own() -> None:
    first, second = load_problem("ioi"), load_problem("ioi")
    before = weights(second.model)[0].clone()
    with torch.no_grad():
        weights(first.model)[0].zero_()
    assert torch.equal(weights(second.model)[0], before)


@pytest.mark.parametrize("name", ["ioi", "tracr-xproportion"])
def test_global_random_generators_are_left_alone(name: str) -> None:
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    load_problem(name)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_seeds_choose_the_prompts() -> None:
    first = prompts_of(load_problem("ioi", seed=0))
    assert first == prompts_of(load_problem("ioi", seed=0))
    assert first != prompts_of(load_problem("ioi", seed=1))


def test_task_is_entered_in_the_host_once() -> None:
    from auto_circuit.tasks import TASK_DICT

    load_problem("ioi")
    problem = load_problem("ioi", batch_size=4)
    assert [key for key in TASK_DICT if key.startswith("pahq: ioi")].count(problem.task.key) == 1
    task = TASK_DICT[problem.task.key]
    assert task is problem.task
    assert task.model is problem.model and task.true_edges is None and task.true_edge_count is None
    assert task.train_loader is problem.train_loader and task.test_loader is problem.test_loader
    assert (task.batch_size, task.batch_count) == ((4, 4), (4, 8))


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


def test_names() -> None:
    assert problem_names() == [
        "ioi",
        "greater-than",
        "induction",
        "docstring",
        "tracr-reverse",
        "tracr-xproportion",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "poetry"}, "'poetry'.*ioi.*tracr-xproportion"),
        ({"name": "ioi", "batch_size": 0}, "above 0, not 0"),
        ({"name": "docstring", "model": "bundled"}, "not trained on docstring.*attn-only-4l"),
        ({"name": "induction", "model": "gpt2"}, "induction has no published prompts.*'gpt2'"),
        ({"name": "tracr-reverse", "model": "gpt2"}, "its own model.*'gpt2'"),
        ({"name": "tracr-reverse", "prompts": "mine.json"}, "leave prompts out"),
        ({"name": "tracr-reverse", "batch_size": 200}, "batch_size 200 is too large.*243"),
        ({"name": "ioi", "model": "gpt-17"}, "no model 'gpt-17'.*gpt2"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ProblemError, match=says) as caught:
        load_problem(**arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused() -> None:
    state = load_file(bundled_model.FOLDER / "model.safetensors")
    missing = {name: value for name, value in state.items() if name != "blocks.1.attn.W_Q"}
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.W_Q"):
        host_problems.language_model(bundled_model.config(), missing)
    with pytest.raises(ModelError, match=r"pos_embed\.W_pos"):
        host_problems.language_model({**bundled_model.config(), "n_ctx": 16}, state)


def test_another_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "digest", lambda: "other")
    with pytest.raises(ModelError, match="another vocabulary"):
        bundled_model.load()


def test_importing_the_zoo_is_light() -> None:
    code = (
        "import sys, pahq_plugin.problems; print({'torch', 'transformer_lens', 'jax'} & {*sys.modules})"
    )
    source = str(Path(bundled_model.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "set()"


def test_a_problem_shows_itself_in_one_line() -> None:
    shown = repr(load_problem("tracr-reverse"))
    assert shown.startswith("<Problem: tracr-reverse, ") and len(shown) < 200
    assert "its circuit is known" in shown and "\n" not in shown
