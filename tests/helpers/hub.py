"""A hub without a network: a small model and tokenizer that stand in for GPT-2 and its like."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformer_lens import HookedTransformer, loading_from_pretrained
from transformers import PreTrainedTokenizerFast

from pahq_plugin.problems import templates, vocabulary

END = "<|endoftext|>"
TEXTS = (
    *vocabulary.WORDS,
    *templates.IOI_TEMPLATES,
    *templates._PLACES,
    *templates._THINGS,
    *templates._ARGUMENTS,
    *templates._PROSE,
    templates.GREATER_THAN_TEMPLATE,
    'def f(self, a, b, c, d):\n    """oil column piece\n\n    :param a: x\n    :param',
)


def small_tokenizer(without: str = "") -> PreTrainedTokenizerFast:
    """Words with their leading space are tokens, as in GPT-2; years are two tokens.

    ``without`` is a word that it does not have: it becomes two tokens.
    """
    splitters = [Split(Regex(r" ?\d\d"), "isolated"), ByteLevel(add_prefix_space=False)]
    if without:
        middle = len(without) // 2
        splitters.insert(0, Split(Regex(f" ?{without[:middle]}(?={without[middle:]})"), "isolated"))
    splitter = Sequence(splitters)
    pieces = {"<unk>": 0, END: 1}
    for text in TEXTS:
        for form in (text, f" {text}"):
            for piece, _ in splitter.pre_tokenize_str(form):
                pieces.setdefault(piece, len(pieces))
    tokenizer = Tokenizer(WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, unk_token="<unk>"
    )
    # Else TransformerLens loads the tokenizer anew from the hub, in order to set the second.
    fast.init_kwargs |= {"name_or_path": "local", "add_bos_token": True}
    return fast


def install(monkeypatch: pytest.MonkeyPatch, n_layers: int = 1, n_heads: int = 2) -> list[Any]:
    """Have TransformerLens "download" a small random model; returns the calls it got."""
    calls: list[Any] = []

    def from_pretrained(name: str, **options: Any) -> HookedTransformer:
        calls.append((name, options))
        tokenizer = small_tokenizer()
        official = loading_from_pretrained.get_official_model_name(name)
        return HookedTransformer(
            {
                "model_name": official.split("/")[-1],
                "n_layers": n_layers,
                "n_heads": n_heads,
                "d_model": 16,
                "d_head": 8,
                "d_mlp": 32,
                "n_ctx": 64,
                "d_vocab": len(tokenizer),
                "act_fn": "gelu",
                "normalization_type": "LNPre",
                "attn_only": official.endswith("Code"),
                "seed": 0,
                "device": options["device"],
            },
            tokenizer=tokenizer,
        )

    monkeypatch.setattr(HookedTransformer, "from_pretrained", from_pretrained)
    monkeypatch.setattr("pahq_plugin.models.load._hub_weights", lambda official: None)
    return calls
