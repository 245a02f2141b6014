"""Folders of Hugging Face models: loaded, or refused by what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import pahq_plugin as pahq
from pahq_plugin.cli import app as cli
from pahq_plugin.errors import ModelError, ProblemError, PromptError
from tests.helpers.hub import small_tokenizer
from tests.helpers.hugging_face import VOCABULARY, hf_model

LENGTH = 24
"""Longer than every window and than what `from_hugging_face` compares itself."""

TOLERANCE = 1e-5
"""Of logits in their standard deviations; 1e-6 to 3e-6 were measured, FP32 rounding."""


def tokens(seed: int = 0, prompts: int = 2, length: int = LENGTH) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (prompts, length), generator=draw)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """In standard deviations, without what is equal for all words of a position."""
    ours, theirs = (x.detach() - x.detach().mean(-1, keepdim=True) for x in (ours, theirs))
    return float((ours - theirs).abs().max() / theirs.std())


def saved(folder: Path, name: str = "gpt2", tokenizer: bool = False, **options: Any) -> Path:
    words = small_tokenizer()
    model = hf_model(name)
    if tokenizer:
        model.resize_token_embeddings(len(words), mean_resizing=False)
        words.save_pretrained(folder)
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("name", ["gpt2", "qwen2-window", "gemma-2"])
def test_a_folder(name: str, tmp_path: Path) -> None:
    """Also one of several files."""
    folder = saved(tmp_path / "models" / "mine", name, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    expected = hf_model(name)(input_ids=tokens()).logits
    for place in (folder, str(folder)):
        model = pahq.from_hugging_face(place)
        assert difference(model(tokens()), expected) <= TOLERANCE
    assert model.cfg.model_name == "mine (local)" and model.wrapped_model.tokenizer is None  # type: ignore[union-attr]


def test_a_problem_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as a path, or where no model of the hub has this name; else transformers would take the
    folder for the hub's model without a word."""
    folder = saved(tmp_path / "gpt2", tokenizer=True)
    monkeypatch.chdir(tmp_path)
    problem = pahq.load_problem("ioi", model="./gpt2", batch_size=2)
    assert problem.true_edges is None and problem.task.key == "pahq: ioi (gpt2 (local))"
    again = pahq.load_problem("ioi", model=folder, batch_size=2)
    assert again.model.cfg.model_name == "gpt2 (local)"
    for name in ("gpt2", "gpt2-small"):
        with pytest.raises(ProblemError, match=rf"'{name}'"):
            pahq.load_problem("ioi", model=name, batch_size=2)
    folder.rename(tmp_path / "mine")
    assert pahq.load_problem("ioi", model="mine", batch_size=2).model.cfg.model_name == "mine (local)"


def test_discover_from_the_command_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine", tokenizer=True)
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    asked = ["discover", "ioi", "--model", str(folder), "--batch-size", "2", "--json"]
    done = runner.invoke(cli.app, asked)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["model"]["name"] == "mine (local)"
    (folder / "tokenizer.json").unlink()
    done = runner.invoke(cli.app, asked)
    assert done.exit_code == 1 and "no tokenizer.json" in done.stderr


def test_prompts_of_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    folder, file = saved(tmp_path / "mine"), tmp_path / "prompts.json"
    pairs = zip(tokens(1, 6, 5).tolist(), tokens(2, 6, 5).tolist(), strict=True)
    prompts = [{"clean": a, "corrupt": b, "answers": [1], "wrong_answers": [2]} for a, b in pairs]
    file.write_text(json.dumps({"prompts": prompts}))
    problem = pahq.load_problem("ioi", model=folder, prompts=file, batch_size=2)
    assert next(iter(problem.train_loader)).clean.shape == (2, 5)
    prompts[3]["answers"] = [" word"]  # type: ignore[list-item]
    file.write_text(json.dumps({"prompts": prompts}))
    with pytest.raises(PromptError, match=r"no tokenizer\.json"):
        pahq.load_problem("ioi", model=folder, prompts=file, batch_size=2)


def edited(folder: Path, file: str, **values: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | values))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(hf_model("gpt2").state_dict(), folder / "pytorch_model.bin")


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lacking(folder: Path) -> None:
    outside(folder)
    edited(folder, "model.safetensors.index.json", weight_map={"lm_head.weight": "a.safetensors"})


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "no architecture": (lambda f: edited(f, "config.json", architectures=None), "architectures"),
    "unknown": (
        lambda f: edited(f, "config.json", architectures=["BertModel"]),
        "BertModel",
    ),
    "few bits": (
        lambda f: edited(f, "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "unquantised",
    ),
    "weights of another name": (
        lambda f: edited(f, "config.json", transformers_weights="../other.safetensors"),
        "transformers_weights",
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter"),
    "a pickle": (pickled, r"model\.safetensors"),
    "weights elsewhere": (outside, r"\.\./other\.safetensors"),
    "a file is missing": (lacking, r"a\.safetensors"),
    "torn": (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "cannot be loaded"),
    "other sizes": (lambda f: edited(f, "config.json", n_embd=48), "cannot be loaded"),
    "a torn tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_folder_is_refused(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[case]
    folder = saved(tmp_path / "mine")
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        pahq.from_hugging_face(folder)


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    """Neither of the model nor of the tokenizer, whatever the files ask for."""
    folder, mark = saved(tmp_path / "mine", tokenizer=True), tmp_path / "was run"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    evil = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edited(folder, "config.json", auto_map=evil, model_type="evil")
    edited(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    model: Any = pahq.from_hugging_face(folder).wrapped_model
    assert model.tokenizer is not None and not mark.exists()
