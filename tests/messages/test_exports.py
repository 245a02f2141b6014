"""Messages about models and options that no ONNX graph can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformerKeyValueCache

import pahq_plugin as pahq
from pahq_exporters import export_onnx
from pahq_plugin.errors import ConfigError, ExportError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.families import family_model
from tests.helpers.refused import refused
from tests.helpers.small import small_model, tokens


def model_with(change: Callable[[Any], object], **arguments: Any) -> Any:
    model = small_model(**arguments)
    change(model)
    return model


def cached(model: Any) -> None:
    """Give a model the caches of a common prefix of two tokens."""
    cache = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", 4)
    model.wrapped_model(tokens(length=2), past_kv_cache=cache)
    cache.freeze()
    model.kv_caches = {4: cache}


class Strange(torch.nn.Module):
    """A part that no graph knows."""

    W_O = torch.zeros(1)


def replaced(part: str) -> Any:
    return model_with(lambda m: setattr(m.wrapped_model.blocks[1], part, Strange()))


MODELS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: small_model(positional_embedding_type="shortformer"),
        "no graph for 'shortformer' positions; known: standard, rotary, alibi",
    ),
    (
        lambda: model_with(cached),
        "the model carries a KV cache of a common prefix; export it without one",
    ),
    (
        lambda: small_model(dtype=torch.float64),
        "weights are in float64, but graphs compute in FP32; call model.wrapped_model.to(torch.float32)",
    ),
    (
        lambda: model_with(lambda m: m.wrapped_model.hook_embed.add_hook(lambda x, hook: x)),
        "hooks on hook_embed would not be in the graph; undo that first",
    ),
    (
        lambda: model_with(lambda m: setattr(m.blocks[1].mlp, "act_fn", torch.tanh)),
        "no graph for the activation function of blocks.1.mlp; known: relu, silu, gelu",
    ),
    (
        lambda: pahq.adapt(family_model("gemma-2")),
        "no graph for norms after attention (use_normalization_before_and_after is on)",
    ),
    (lambda: replaced("ln1"), "no graph for blocks.1.ln1, a Strange"),
    (lambda: replaced("mlp"), "no graph for blocks.1.mlp, a Strange"),
    (lambda: replaced("attn"), "no graph for blocks.1.attn, a Strange"),
]


@pytest.mark.parametrize(("made", "message"), MODELS, ids=[message for _, message in MODELS])
def test_models_that_no_graph_can_hold(made: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with refused(ExportError, message):
        export_onnx(made(), tmp_path / "g.onnx")


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"start_layer": 9}, "start_layer=9 must be an integer between 0 and 1"),
    ({"positions": "x"}, 'positions=\'x\' must be "all" or "model"'),
    (
        {"graph": "sweep", "head": (0, 0)},
        "head= belongs to graph='dense'; a sweep graph tests the head of its edge",
    ),
    (
        {"precision": PrecisionConfig(low="int8", mlp="int8", weights="int4")},
        "weights='int4': graphs hold weights in one byte; leave it out",
    ),
    (
        {"precision": PrecisionConfig(low="int8", mlp="int8", parts=("qkv", "scores"))},
        "graphs keep scores in FP32; leave them out of parts and formats",
    ),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[message for _, message in OPTIONS])
def test_options_of_an_export(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with refused(ConfigError, message):
        export_onnx(small_model(), tmp_path / "g.onnx", **options)


def test_names_of_exports(tmp_path: Path) -> None:
    with refused(ExportError, f"{tmp_path / 'g.bin'}: the name of a graph must end in .onnx"):
        export_onnx(small_model(), tmp_path / "g.bin")
