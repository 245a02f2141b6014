"""Models as folders: opened they are what was saved, and what is damaged is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pahq_plugin as pahq
from pahq_plugin.errors import ModelError, PromptError
from pahq_plugin.models.record import digest, stored_name
from tests.helpers.families import FAMILIES, family_model, tokens
from tests.helpers.refused import refused
from tests.helpers.small import transformer

STORABLE = sorted(FAMILIES.keys() - {"gemma-2"})
SAMPLED = {"gpt2", "llama-3", "bloom", "mixtral", "solu", "attn-only"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLED else pytest.mark.full) for n in STORABLE]
)
def test_an_opened_model_is_the_saved_one(name: str, tmp_path: Path) -> None:
    model = family_model(name)
    pahq.save_model(model, tmp_path / "model")
    opened = pahq.open_model(tmp_path / "model")
    assert {n: p.dtype for n, p in opened.named_parameters()} == {
        n: p.dtype for n, p in model.named_parameters()
    }
    with torch.inference_mode():
        for prompts in tokens():
            assert torch.equal(opened(prompts), model(prompts))
    assert not opened.training and not any(p.requires_grad for p in opened.parameters())
    assert stored_name(tmp_path / "model") == model.cfg.model_name


def test_it_can_be_saved_after_adapt_and_again(tmp_path: Path) -> None:
    model = family_model("llama-3")
    before = model(tokens()[0])
    pahq.adapt(model)
    pahq.save_model(model, tmp_path)
    again = pahq.open_model(tmp_path)
    expected = again(tokens()[0])
    assert torch.allclose(expected, before, atol=1e-5)
    pahq.save_model(again, tmp_path, force=True)  # onto the files that it is mapped from
    assert torch.equal(again(tokens()[0]), expected)
    assert torch.equal(pahq.open_model(tmp_path)(tokens()[0]), expected)
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_a_shorter_context(tmp_path: Path) -> None:
    for name in ("gpt2", "llama-3"):
        model = family_model(name)
        pahq.save_model(model, tmp_path / name)
        short = pahq.open_model(tmp_path / name, n_ctx=4)
        assert short.cfg.n_ctx == 4 and short.blocks[0].attn.mask.shape == (4, 4)
        assert torch.equal(short(tokens(length=4)[0]), model(tokens(length=4)[0]))
        for n_ctx in (-1, model.cfg.n_ctx + 1):
            with refused(ModelError, "n_ctx"):
                pahq.open_model(tmp_path / name, n_ctx=n_ctx)


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with refused(ModelError):
        pahq.save_model(family_model("gemma-2"), tmp_path)
    with refused(ModelError, "PatchableModel"):
        pahq.save_model(pahq.adapt(family_model("gpt2")), tmp_path)  # type: ignore[arg-type]
    with refused(ModelError, "str"):
        pahq.save_model("gpt2", tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    broken = family_model("gpt2")
    with torch.no_grad():
        broken.blocks[0].mlp.W_in[0, 0] = torch.nan
    with refused(ModelError, "blocks.0.mlp.W_in"):
        pahq.save_model(broken, tmp_path)


def test_a_model_that_is_there_is_kept(tmp_path: Path) -> None:
    pahq.save_model(family_model("gpt2"), tmp_path)
    with refused(ModelError, "force"):
        pahq.save_model(family_model("gpt2", seed=1), tmp_path)
    assert torch.equal(pahq.open_model(tmp_path)(tokens()[0]), family_model("gpt2")(tokens()[0]))


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    """A folder may hold what no model of ours is."""
    (tmp_path / "tokenizer").mkdir()
    mine = ["tokenizer/mine.txt", "token_embedding.safetensors", "block-of-mine.safetensors"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    pahq.save_model(transformer(n_layers=1), tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    pahq.save_model(transformer(n_layers=1), tmp_path, force=True)
    assert all((tmp_path / name).read_text() == "mine" for name in mine[1:])


def test_a_refused_model_replaces_none(tmp_path: Path) -> None:
    pahq.save_model(transformer(n_layers=1), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    broken = transformer(n_layers=1)
    broken.blocks[0].mlp.W_out.data[0, 0] = torch.nan
    with refused(ModelError, "blocks.0.mlp.W_out"):
        pahq.save_model(broken, tmp_path, force=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_nothing_of_a_replaced_model_is_left(tmp_path: Path) -> None:
    """Neither its tokenizer nor blocks that the new one does not have."""
    pahq.save_model(transformer(n_layers=3), tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    pahq.save_model(transformer(n_layers=1), tmp_path, force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "block-000.safetensors", "embedding.safetensors", "model.json", "notes.txt",
        "unembedding.safetensors",
    ]  # fmt: skip
    assert pahq.open_model(tmp_path).tokenizer is None


def _edit(folder: Path, change: Any) -> None:
    file = folder / "model.json"
    record = json.loads(file.read_text())
    change(record)
    record["digest"] = digest(record)
    file.write_text(json.dumps(record))


DAMAGES: dict[str, tuple[Any, str]] = {
    "a list": (lambda f: (f / "model.json").write_text("[]"), "model.json"),
    "no fingerprints": (lambda f: _edit(f, lambda r: r.pop("fingerprints")), "model.json"),
    "texts for fingerprints": (
        lambda f: _edit(f, lambda r: r["fingerprints"].update({"embed.W_E": "1"})),
        "model.json",
    ),
    "a billion experts": (
        lambda f: _edit(f, lambda r: r["config"].update(num_experts=10**9)),
        "num_experts",
    ),
    "another type": (lambda f: _edit(f, lambda r: r["config"].update(dtype="int8")), "model.json"),
    "a negative size": (lambda f: _edit(f, lambda r: r["config"].update(d_model=-1)), "model.json"),
    "a torn block": (
        lambda f: (f / "block-000.safetensors").write_bytes(
            (f / "block-000.safetensors").read_bytes()[:-100]
        ),
        "block-000.safetensors",
    ),
    "a missing block": (lambda f: (f / "block-001.safetensors").unlink(), "block-001.safetensors"),
    "a swapped block": (
        lambda f: shutil.copy(f / "block-000.safetensors", f / "block-001.safetensors"),
        "block-001.safetensors",
    ),
}
"""Besides those of tests/messages."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    pahq.save_model(family_model("gpt2"), tmp_path / "model")
    change, word = DAMAGES[damage]
    change(tmp_path / "model")
    with refused(ModelError, word):
        pahq.open_model(tmp_path / "model")


def test_the_file_decides_neither_device_nor_code(tmp_path: Path) -> None:
    pahq.save_model(family_model("gpt2"), tmp_path)
    _edit(tmp_path, lambda r: r["config"].update(device="cuda:7", trust_remote_code=True, n_devices=9))
    opened = pahq.open_model(tmp_path)
    assert opened.cfg.device == "cpu" and not opened.cfg.trust_remote_code and opened.cfg.n_devices == 1


def test_the_stored_bundled_model_solves_the_same_problem(tmp_path: Path) -> None:
    from pahq_plugin.problems.load import store_model

    nbytes = store_model("bundled", tmp_path / "bundled")
    assert nbytes == sum(p.nbytes for p in pahq.problems.bundled_model.load().parameters())
    found = {}
    for model in (None, str(tmp_path / "bundled")):
        problem = pahq.load_problem("greater-than", model=model)
        result = pahq.discover(
            problem.model,
            problem.train_loader,
            method="acdc",
            progress=False,
            max_memory=None if model is None else "60MB",
        )
        found[model] = [(str(d.edge), d.effect, d.kept) for d in result.decisions]
    small, whole = found.values()
    assert [(e, kept) for e, _, kept in small] == [(e, kept) for e, _, kept in whole]


def test_a_stored_model_without_a_tokenizer_reads_no_text(tmp_path: Path) -> None:
    pahq.save_model(family_model("gpt2"), tmp_path)
    with refused(PromptError, "tokenizer"):
        pahq.load_problem("ioi", model=str(tmp_path))
