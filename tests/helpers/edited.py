"""Edits of a model's modules that its configuration does not say, and what each does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformer_lens import HookedTransformer

from tests.helpers.small import transformer

ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_dim": 8}


@dataclass(frozen=True)
class Edit:
    """One edit.

    Attributes:
        make: changes a model in place.
        named: the words that messages name it by.
        stored: whether `save_model` holds it.
        exported: whether graphs hold it.
        base: arguments of the model that it is made to.
    """

    make: Callable[[HookedTransformer], object]
    named: str
    stored: bool = False
    exported: bool = False
    base: tuple[tuple[str, Any], ...] = ()

    def model(self) -> HookedTransformer:
        """An edited model; the same every time."""
        model = transformer(**dict(self.base))
        self.make(model)
        return model


def _hide(model: HookedTransformer) -> None:
    """The third of six tokens from the ones after it, as TransformerLens reads a mask: from its end."""
    attn: Any = model.blocks[0].attn
    attn.mask[-3:, -4] = False


def _turn(name: str, rows: slice, model: HookedTransformer) -> None:
    """Shift some rows of one block's rotary table; the others stay, the first two of them, too."""
    attn: Any = model.blocks[1].attn
    getattr(attn, name)[rows] += 0.3


def _set(path: str, value: Any, model: HookedTransformer) -> None:
    module, _, name = path.rpartition(".")
    setattr(model.get_submodule(module), name, value)


def _wrap(path: str, model: HookedTransformer) -> None:
    """Replace a method of one module by one that doubles its result."""
    module, _, name = path.rpartition(".")
    owner = model.get_submodule(module)
    own = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: 2 * own(*args, **options))


def _permanent(model: HookedTransformer) -> None:
    point: Any = model.get_submodule("blocks.0.attn.hook_z")
    point.add_hook(lambda z, hook: 2 * z, is_permanent=True)


def _hook(path: str, model: HookedTransformer) -> None:
    model.get_submodule(path).register_forward_hook(lambda module, args, out: 2 * out)


class Doubled(nn.Linear):
    """A module of another origin that answers ``W_U`` and ``b_U`` as an unembedding does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


EDITS: dict[str, Edit] = {
    "mask": Edit(_hide, "the edited blocks.0.attn.mask", stored=True, exported=True),
    "window": Edit(
        _hide, "the edited blocks.0.attn.mask", stored=True, exported=True,
        base=(("use_local_attn", True), ("window_size", 3), ("attn_types", ["local", "global"])),
    ),
    "ignore": Edit(
        partial(_set, "blocks.1.attn.IGNORE", torch.tensor(-2.0)), "the edited blocks.1.attn.IGNORE",
        stored=True,
    ),
    "cosines": Edit(
        partial(_turn, "rotary_cos", slice(2, None)), "the edited blocks.1.attn.rotary_cos",
        stored=True, exported=True, base=tuple(ROTARY.items()),
    ),
    "sines": Edit(
        partial(_turn, "rotary_sin", slice(3, 6)), "the edited blocks.1.attn.rotary_sin",
        stored=True, exported=True, base=tuple(ROTARY.items()),
    ),
    "scale": Edit(
        partial(_set, "blocks.0.attn.attn_scale", 0.7), "blocks.0.attn.attn_scale of 0.7",
        stored=True, exported=True,
    ),
    "eps": Edit(
        partial(_set, "blocks.1.ln1.eps", 0.5), "blocks.1.ln1.eps of 0.5", stored=True, exported=True
    ),
    "last eps": Edit(
        partial(_set, "ln_final.eps", 0.5), "ln_final.eps of 0.5", stored=True, exported=True
    ),
    "known function": Edit(
        partial(_set, "blocks.1.mlp.act_fn", nn.functional.relu), "the replaced act_fn of blocks.1.mlp",
        stored=True, exported=True,
    ),
    "function": Edit(
        partial(_set, "blocks.1.mlp.act_fn", torch.tanh), "the replaced act_fn of blocks.1.mlp"
    ),
    "function module": Edit(
        partial(_set, "blocks.1.mlp.act_fn", nn.Tanh()), "blocks.1.mlp.act_fn, a Tanh"
    ),
    "method": Edit(partial(_wrap, "blocks.0.mlp.forward"), "the replaced forward of blocks.0.mlp"),
    "inner method": Edit(
        partial(_wrap, "blocks.1.attn.calculate_attention_scores"),
        "the replaced calculate_attention_scores of blocks.1.attn",
    ),
    "permanent hook": Edit(_permanent, "hooks on blocks.0.attn.hook_z"),
    "torch's hook": Edit(partial(_hook, "blocks.1.attn"), "hooks on blocks.1.attn"),
    "module": Edit(
        partial(_set, "blocks.0.ln2", nn.Identity()), "blocks.0.ln2, a Identity"
    ),
    "additional weight": Edit(
        lambda model: model.get_submodule("blocks.0.mlp").register_parameter(
            "gain", nn.Parameter(torch.ones(1))
        ),
        "the additional blocks.0.mlp.gain",
    ),
}  # fmt: skip
"""One of each kind, some with several."""
