"""Models that cannot be patched and result files that are damaged, by what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel

from tests.helpers.small import patchable, small_model, transformer


def with_flags(**flags: bool) -> PatchableModel:
    model = small_model()
    for name, value in flags.items():
        setattr(model.cfg, name, value)
    return model


def unseparated(**flags: bool) -> PatchableModel:
    model = patchable(transformer(separate_qkv=False), separate_qkv=False)
    for name, value in flags.items():
        setattr(model.cfg, name, value)
    return model


def not_factorized() -> PatchableModel:
    unsplit = transformer(separate_qkv=False)
    return patchable_model(unsplit, factorized=False, slice_output="last_seq", separate_qkv=False)


def grouped() -> PatchableModel:
    return patchable(transformer(n_key_value_heads=2))


def with_bad_weight(*names: str, value: float = math.nan) -> PatchableModel:
    model = small_model()
    parameters = dict(model.wrapped_model.named_parameters())
    for name in names:
        parameters[name].data.view(-1)[-1] = value
    return model


BROKEN_MODELS: dict[str, tuple[Callable[[], PatchableModel], str]] = {
    "use_attn_result": (lambda: with_flags(use_attn_result=False), "use_attn_result is off"),
    "split inputs": (lambda: with_flags(use_split_qkv_input=False), "use_split_qkv_input is off"),
    "mlp inputs": (lambda: with_flags(use_hook_mlp_in=False), "use_hook_mlp_in is off"),
    "attention inputs": (lambda: unseparated(use_attn_in=False), "use_attn_in is off"),
    "split on, not separate": (
        lambda: unseparated(use_split_qkv_input=True),
        "use_split_qkv_input is on",
    ),
    "post-norm": (lambda: with_flags(use_normalization_before_and_after=True), "post-norm"),
    "not factorized": (not_factorized, "not factorized"),
    "grouped": (grouped, "n_key_value_heads"),
    "NaN": (lambda: with_bad_weight("blocks.1.attn.W_K"), "blocks.1.attn.W_K"),
    "inf": (lambda: with_bad_weight("blocks.0.mlp.b_out", value=math.inf), "blocks.0.mlp.b_out"),
    "first NaN": (
        lambda: with_bad_weight("blocks.1.mlp.W_in", "blocks.0.attn.W_O", "unembed.W_U"),
        "blocks.0.attn.W_O",
    ),
}
"""How to make each model, and what its error names."""


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def alter(text: str) -> str:
        record = json.loads(text)
        change(record)
        return json.dumps(record)

    return alter


def decision(field: str, value: Any) -> Callable[[str], str]:
    return altered(lambda record: record["decisions"][5].update({field: value}))


DAMAGED: dict[str, Callable[[str], str]] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "binary": lambda text: "\x00\x01",
    "a list": lambda text: "[]",
    "foreign": lambda text: '{"name": "something else"}',
    "no settings": altered(lambda r: r.pop("settings")),
    "no decisions": altered(lambda r: r.pop("decisions")),
    "kept is a word": decision("kept", "yes"),
    "effect is NaN": decision("effect", math.nan),
    "effect is a word": decision("effect", "0.5"),
    "edge is a number": decision("edge", 5),
    "edge is no edge": decision("edge", "A9.9->nowhere"),
    "edge without an arrow": decision("edge", "nowhere"),
    "unknown position": decision("seq_idx", 4),
    "one more field": decision("note", ""),
    "one decision twice": altered(lambda r: r["decisions"].append(r["decisions"][5])),
    "one instead of another": altered(lambda r: r["decisions"].__setitem__(4, r["decisions"][5])),
}
