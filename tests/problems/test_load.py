"""``load_problem``: problems of the bundled model, and what is refused."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pahq_plugin.errors import ProblemError
from pahq_plugin.problems import bundled_model, load_problem, problem_names
from pahq_plugin.problems.generated import TASKS
from tests.helpers.problems import outputs, prompts_of


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
        ({"name": "docstring", "model": "bundled"}, "docstring"),
        ({"name": "induction", "model": "gpt2"}, "induction"),
        ({"name": "tracr-reverse", "model": "gpt2"}, "'gpt2'"),
        ({"name": "tracr-reverse", "prompts": "mine.json"}, "prompts"),
        ({"name": "tracr-reverse", "batch_size": 200}, "200"),
        ({"name": "ioi", "model": "gpt-17"}, "'gpt-17'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ProblemError, match=says) as caught:
        load_problem(**arguments)
    assert "\n" not in str(caught.value)


def test_importing_the_problems_is_light() -> None:
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
