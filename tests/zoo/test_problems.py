"""``load_problem``: bundled, Tracr and hub problems, users' prompt files, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer
from zoo import hub

from pahq_plugin.errors import ModelError, ProblemError, PromptError
from pahq_plugin.host import problems as host_problems
from pahq_plugin.zoo import bundled_model, load_problem, problem_names, vocabulary
from pahq_plugin.zoo.prompts import TASKS, generate
from pahq_plugin.zoo.tracr import TOKEN_IDS


def outputs(problem: Any, batch: Any) -> torch.Tensor:
    with torch.inference_mode():
        return problem.model(batch.clean)[problem.model.out_slice]


def prompts_of(problem: Any) -> list[list[int]]:
    loaders = (problem.train_loader, problem.test_loader)
    return [row for loader in loaders for batch in loader for row in batch.clean.tolist()]


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
        ({"name": "ioi", "batch_size": 0}, "at least 1, not 0"),
        ({"name": "docstring", "model": "bundled"}, "does not know docstring.*attn-only-4l"),
        ({"name": "induction", "model": "gpt2"}, "induction has no published prompts.*'gpt2'"),
        ({"name": "tracr-reverse", "model": "gpt2"}, "model of its own.*'gpt2'"),
        ({"name": "tracr-reverse", "prompts": "mine.json"}, "leave prompts out"),
        ({"name": "tracr-reverse", "batch_size": 200}, "batch_size 200 is too large.*243"),
        ({"name": "ioi", "model": "gpt-17"}, "no model 'gpt-17'.*gpt2"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ProblemError, match=says) as caught:
        load_problem(**arguments)
    assert "\n" not in str(caught.value)


def user_file(folder: Path, content: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def text_pair(**changes: Any) -> dict[str, Any]:
    pair = {
        "clean": "When Mary and John went to the store , John gave a drink to",
        "corrupt": "When Mary and John went to the store , Mary gave a drink to",
        "answers": [" Mary"],
        "wrong_answers": ["John"],
    }
    return {**pair, **changes}


def test_own_prompts_as_text(tmp_path: Path) -> None:
    data = {
        "prompts": [text_pair() for _ in range(6)],
        "seq_labels": ["x"] * 14,
        "word_idxs": {"a": 1},
    }
    problem = load_problem("ioi", prompts=user_file(tmp_path, data), batch_size=2)
    assert (len(problem.train_loader), len(problem.test_loader)) == (1, 2)
    batch = next(iter(problem.train_loader))
    assert vocabulary.decode(batch.clean[0].tolist()) == ["BOS", *text_pair()["clean"].split()]
    assert vocabulary.decode(batch.answers[0].tolist()) == ["Mary"]
    assert problem.train_loader.seq_labels == ["BOS", *["x"] * 14]
    assert problem.train_loader.word_idxs == {"a": 2}
    assert outputs(problem, batch).argmax(-1).tolist() == batch.answers[:, 0].tolist()


def test_own_prompts_as_token_ids_or_with_bos_stay_as_they_are(tmp_path: Path) -> None:
    generated = generate("ioi", 20, seed=0)
    problem = load_problem("ioi", prompts=user_file(tmp_path, generated), batch_size=4)
    expected = [prompt["clean"] for prompt in generated["prompts"]]
    assert sorted(prompts_of(problem)) == sorted(expected)
    assert problem.train_loader.word_idxs == generated["word_idxs"]
    pair = text_pair()
    with_bos = text_pair(clean=f"BOS {pair['clean']}", corrupt=f"BOS {pair['corrupt']}")
    data = {"prompts": [with_bos] * 4, "word_idxs": {"a": 1}}
    loader = load_problem("ioi", prompts=user_file(tmp_path, data), batch_size=1).train_loader
    assert next(iter(loader)).clean.shape == (1, 15)
    assert loader.word_idxs == {"a": 1}


def test_order_of_own_prompts_follows_the_seed(tmp_path: Path) -> None:
    path = user_file(tmp_path, generate("ioi", 24, seed=0))
    orders = [prompts_of(load_problem("ioi", prompts=path, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


GOOD = text_pair()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ([1], 'no list "prompts"'),
        ({"pairs": []}, 'no list "prompts"'),
        ({"prompts": []}, "no prompts"),
        ({"prompts": [GOOD, {"clean": "a", "answers": ["a"]}]}, "prompt 1 lacks corrupt, wrong_a"),
        ({"prompts": [7]}, "prompt 0 lacks clean"),
        (
            {"prompts": [GOOD, GOOD, text_pair(corrupt="and " + GOOD["corrupt"])]},
            "prompt 2: clean has 15 tokens and corrupt 16",
        ),
        (
            {"prompts": [GOOD, text_pair(clean="and and", corrupt="and to")]},
            "prompt 1 has 3 tokens and prompt 0 has 15",
        ),
        ({"prompts": [text_pair(clean="When Zaphod")]}, "prompt 0: .* word 'Zaphod'"),
        ({"prompts": [text_pair(answers=["Zaphod"])]}, "prompt 0: .* word 'Zaphod'"),
        ({"prompts": [text_pair(answers=["Mary John"])]}, "'Mary John' is 2 tokens"),
        ({"prompts": [text_pair(answers=[])]}, r"prompt 0: answers must be .* not \[\]"),
        ({"prompts": [text_pair(clean="")]}, r"prompt 0: expected text or a list of token ids"),
        ({"prompts": [text_pair(clean=[0, 388])]}, "prompt 0: 388 is no token id; .* 0 to 387"),
        ({"prompts": [text_pair(answers=[1.5])]}, "1.5 is no token id"),
        ({"prompts": [text_pair(clean=5)]}, "expected text or a list of token ids, not 5"),
        ({"prompts": [GOOD] * 9}, "9 prompts are too few .* 8; pass a smaller batch_size"),
        ({"prompts": [GOOD], "word_idxs": {"a": "b"}}, '"word_idxs" must map'),
        ({"prompts": [GOOD], "seq_labels": "a"}, '"seq_labels" must be a list'),
        (
            {"prompts": [{**GOOD, "clean": [1] * 40, "corrupt": [2] * 40}] * 16},
            "40 tokens; the model reads at most 32",
        ),
    ],
)
def test_bad_prompt_files(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says) as caught:
        load_problem("ioi", prompts=user_file(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_unreadable_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"nowhere\.json: No such file"):
        load_problem("ioi", prompts=tmp_path / "nowhere.json")
    with pytest.raises(PromptError, match="Is a directory"):
        load_problem("ioi", prompts=tmp_path)


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


def test_offline_without_a_cache_is_one_error(tmp_path: Path) -> None:
    """What TransformerLens itself raises then, not a stand-in for it."""
    code = (
        "from pahq_plugin.zoo import load_problem\n"
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


def test_importing_the_zoo_is_light() -> None:
    code = "import sys, pahq_plugin.zoo; print({'torch', 'transformer_lens', 'jax'} & {*sys.modules})"
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


def test_prompts_that_are_no_file() -> None:
    with pytest.raises(PromptError, match="prompts is a dict; name a JSON file"):
        load_problem("ioi", prompts={"prompts": []})  # type: ignore[arg-type]
