"""Hugging Face folders: the model is what the files hold, and its tokenizer is the model's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import pahq_plugin as pahq
from pahq_plugin.errors import ModelError, ProblemError
from pahq_plugin.models.hugging_face import hooked_model
from pahq_plugin.models.load import hub_model
from tests.helpers.hugging_face import MODELS, VOCABULARY, hf_model

Weights = dict[str, Tensor]

TOKENS = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))


def written(folder: Path, model: Any, edit: Callable[[Weights], Weights] = dict, **config: Any) -> Path:
    """A model as `save_pretrained` writes it, with its weights and configuration changed."""
    model.save_pretrained(folder)
    weights = edit(load_file(folder / "model.safetensors"))
    save_file(
        {n: x.contiguous() for n, x in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": x for name, x in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: x for name, x in weights.items() if part not in name}


def plus(name: str, like: str, factor: float = 1.0) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: factor * weights[like].clone()}


LAYERS = {"gpt2": "n_layer", "pythia": "num_hidden_layers", "llama": "num_hidden_layers"}
Q_BIAS = "model.layers.0.self_attn.q_proj.bias"
REFUSED: dict[str, tuple[str, Callable[[Weights], Weights], dict[str, Any], str]] = {
    "compiled": ("llama", renamed("_orig_mod."), {}, r"_orig_mod\.lm_head"),
    "adapter's prefix": ("gpt2", renamed("base_model.model."), {}, r"base_model\.model\."),
    "a weight": ("llama", without("layers.1.mlp.up_proj"), {}, r"model\.layers\.1\.mlp\.up_proj"),
    "a bias": ("gpt2", without("h.0.attn.c_attn.bias"), {}, r"h\.0\.attn\.c_attn\.bias"),
    "a norm": ("gemma-2", without("model.norm"), {}, r"model\.norm\.weight"),
    "a head": ("llama", without("lm_head"), {}, r"lm_head\.weight"),
    "an embedding": ("qwen2", without("embed_tokens"), {}, r"model\.embed_tokens\.weight"),
    "more layers": ("pythia", dict, {"num_hidden_layers": 3}, r"gpt_neox\.layers\.2\."),
    "fewer layers": ("gpt2", dict, {"n_layer": 1}, r"transformer\.h\.1\."),
    "a bias too many": ("llama", plus(Q_BIAS, "model.norm.weight"), {}, r"q_proj\.bias"),
    "an adapter": ("gpt2", plus("transformer.h.0.lora", "transformer.ln_f.bias"), {}, "lora"),
    "an untied head": (
        "llama-3.1", plus("lm_head.weight", "model.embed_tokens.weight", 2.0), {},
        r"lm_head\.weight",
    ),
    "another family": (
        "mistral", dict, {"architectures": ["LlamaForCausalLM"]},
        "'mistral'.* LlamaForCausalLM",
    ),
    "integers": (
        "llama", lambda w: w | {"lm_head.weight": w["lm_head.weight"].to(torch.int8)}, {},
        "I8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_weights_than_the_configurations_are_refused(case: str, tmp_path: Path) -> None:
    name, edit, config, message = REFUSED[case]
    folder = written(tmp_path / "m", hf_model(name), edit, **config)
    with pytest.raises(ModelError, match=message):
        pahq.from_hugging_face(folder)


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    """And `transformers` says nothing besides."""
    folder = written(tmp_path / "m", hf_model("gpt2"), without("h.1.mlp.c_fc.weight"))
    prompts = tmp_path / "p.json"
    entry = {"clean": [1, 2, 3], "corrupt": [1, 4, 3], "answers": [5], "wrong_answers": [6]}
    prompts.write_text(json.dumps({"prompts": [entry] * 4}))
    words = ["discover", "ioi", "--model", folder, "--prompts", prompts]
    done = subprocess.run(
        [sys.executable, "-m", "pahq_plugin", *words],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "transformer.h.1.mlp.c_fc.weight" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def causal(masks: Tensor) -> Callable[[Weights], Weights]:
    """Files of GPT-2 on the hub hold its masks, and have no prefix."""
    return lambda weights: (
        {name.removeprefix("transformer."): x for name, x in weights.items()}
        | {f"h.{layer}.attn.bias": masks.clone() for layer in (0, 1)}
    )


def test_masks_in_files_must_be_the_models(tmp_path: Path) -> None:
    mask = torch.ones(32, 32).tril()[None, None]
    whole = hooked_model(written(tmp_path / "a", hf_model("gpt2"), causal(mask)))
    assert torch.equal(whole(TOKENS), hooked_model(hf_model("gpt2"))(TOKENS))
    mask[..., 20:, 3] = 0
    with pytest.raises(ModelError, match=r"h\.0\.attn\.bias"):
        hooked_model(written(tmp_path / "b", hf_model("gpt2"), causal(mask)))


@pytest.mark.parametrize("name", MODELS)
def test_whole_folders_load(name: str, tmp_path: Path) -> None:
    """Tied heads are not missing; the model is the one in memory, bit for bit."""
    folder = written(tmp_path / "m", hf_model(name))
    assert torch.equal(hooked_model(folder)(TOKENS), hooked_model(hf_model(name))(TOKENS))


def test_a_head_may_be_written_beside_what_it_is_tied_to(tmp_path: Path) -> None:
    edit = plus("lm_head.weight", "model.embed_tokens.weight")
    folder = written(tmp_path / "m", hf_model("llama-3.1"), edit)
    assert torch.equal(hooked_model(folder)(TOKENS), hooked_model(hf_model("llama-3.1"))(TOKENS))


# Dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["bfloat16", "float16", "float32", None])
def test_files_are_read_in_their_own_dtype(named: str | None, tmp_path: Path) -> None:
    """Whatever config.json says of it."""
    folder = written(tmp_path / "m", hf_model("llama"), dtype=named, torch_dtype=named)
    loaded = hooked_model(folder)
    assert torch.equal(loaded(TOKENS), hooked_model(hf_model("llama"))(TOKENS))


def test_files_of_several_dtypes_are_read_without_rounding(tmp_path: Path) -> None:
    def mixed(weights: Weights) -> Weights:
        return {n: x.to(torch.bfloat16) if "mlp" in n else x for n, x in weights.items()}

    model = hf_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(mixed({name: parameter})[name].float())
    folder = written(tmp_path / "m", model, mixed, torch_dtype="bfloat16")
    assert torch.equal(hooked_model(folder)(TOKENS), hooked_model(model)(TOKENS))


@pytest.mark.parametrize("name", ["gemma-2", "gemma", "gpt2", "pythia", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_16_bits_are_converted_without_rounding(name: str, dtype: torch.dtype) -> None:
    """The oracle is the conversion of the model widened first."""
    wide = hf_model(name)
    wide.load_state_dict({n: x.to(dtype).float() for n, x in wide.state_dict().items()})
    given = hf_model(name, dtype=dtype)
    assert torch.equal(hooked_model(given)(TOKENS), hooked_model(wide)(TOKENS))


# Tokenizers and BOS -------------------------------------------------------------------------------

END = "<|endoftext|>"


def byte_level(**special: str) -> Tokenizer:
    vocabulary = {c: i + 3 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {END: 0, "<|im_end|>": 1, "<s>": 2}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def with_tokenizer(folder: Path, name: str, tokenizer_config: dict[str, Any] | None) -> Path:
    """A folder in the hub's own layout, whose tokenizer's class says what its files leave out."""
    model = hf_model(name)
    model.resize_token_embeddings(300, mean_resizing=False)
    written(folder, model)
    byte_level().save(str(folder / "tokenizer.json"))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


TOKENIZERS: dict[str, tuple[str, dict[str, Any] | None, str | None]] = {
    "gpt2's layout": ("gpt2", {"model_max_length": 1024}, END),
    "no configuration": ("gpt2", None, END),
    "pythia": ("pythia", {"model_max_length": 1024}, END),
    "another class": ("llama", {"tokenizer_class": "GPT2Tokenizer"}, END),
    "its own token": ("gpt2", {"bos_token": "<s>"}, "<s>"),
    "generic": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}, "<s>"),
    "unknown class": ("gpt2", {"tokenizer_class": "Evil"}, END),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_is_of_its_own_class(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The oracle is what `AutoTokenizer` gives; nothing is printed on the way."""
    name, config, bos = TOKENIZERS[case]
    folder = with_tokenizer(tmp_path / "m", name, config)
    capfd.readouterr()
    own: Any = hooked_model(folder).tokenizer
    assert "tokenizer class" not in "".join(capfd.readouterr())
    assert own.bos_token == bos
    if case != "unknown class":
        right = transformers.AutoTokenizer.from_pretrained(folder)
        assert type(own) is type(right) and own.encode("a b") == right.encode("a b")
        assert (own.eos_token, own.unk_token) == (right.eos_token, right.unk_token)


def text_problem(folder: Path, tmp_path: Path, **options: Any) -> pahq.Problem:
    file = tmp_path / "p.json"
    entry = {"clean": "abc", "corrupt": "abd", "answers": ["x"], "wrong_answers": ["y"]}
    file.write_text(json.dumps({"prompts": [entry] * 6}))
    return pahq.load_problem("ioi", model=folder, prompts=file, batch_size=2, **options)


BEGINNINGS: dict[str, tuple[str, bool | None, int | None, str]] = {
    "gpt2": ("gpt2", None, 0, f"BOS token '{END}' in front; --no-bos"),
    "gpt2 without": ("gpt2", False, None, "no BOS token; --bos"),
    "qwen2": ("qwen2", None, None, "no BOS token; --bos"),
    "qwen2 with": ("qwen2", True, 1, "BOS token '<|im_end|>' in front; --no-bos"),
}


@pytest.mark.parametrize("case", BEGINNINGS)
def test_the_configuration_says_whether_text_begins_with_bos(case: str, tmp_path: Path) -> None:
    name, bos, first, said = BEGINNINGS[case]
    config = {"eos_token": "<|im_end|>"} if name == "qwen2" else {}
    problem = text_problem(with_tokenizer(tmp_path / "m", name, config), tmp_path, bos=bos)
    clean = next(iter(problem.train_loader)).clean
    assert clean.shape == (2, 3 if first is None else 4)
    assert first is None or clean[:, 0].tolist() == [first] * 2
    assert said in problem.note


def test_bos_is_for_text(tmp_path: Path) -> None:
    for name in ("ioi", "tracr-reverse"):
        with pytest.raises(ProblemError, match="bos"):
            pahq.load_problem(name, bos=False)
    folder = with_tokenizer(tmp_path / "m", "llama", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(ProblemError, match="no BOS token"):
        text_problem(folder, tmp_path, bos=True)


# The hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds a small model called ``gpt2``; gives the folder of its files."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    cache = tmp_path / "hub"
    place = cache / "models--gpt2"
    files = place / "snapshots" / "abc"
    files.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    model = hf_model("gpt2")
    model.resize_token_embeddings(300, mean_resizing=False)
    written(files, model, n_ctx=32)
    byte_level().save(str(files / "tokenizer.json"))
    for where in (constants, transformers_hub):
        for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            if hasattr(where, name):
                monkeypatch.setattr(where, name, str(cache))
    return files


def test_a_hub_model_with_missing_weights_is_refused(hub: Path) -> None:
    assert hub_model("gpt2").cfg.n_layers == 2
    whole = load_file(hub / "model.safetensors")
    save_file(without("h.1.mlp.c_fc")(whole), hub / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias"):
        hub_model("gpt2")
