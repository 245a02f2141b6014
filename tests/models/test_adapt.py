"""`pahq.adapt`: what it changes, says and refuses, and that its patches are true interventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import (
    HookedEncoder,
    HookedTransformer,
    HookedTransformerConfig,
    HookedTransformerKeyValueCache,
)

import pahq_plugin as pahq
from pahq_plugin.errors import ModelError
from pahq_plugin.host.graph import canonical_edges
from tests.helpers.families import FAMILIES, family_loader, family_model, tokens
from tests.helpers.replay import replay
from tests.helpers.rounded import patched_logits
from tests.helpers.small import loader, transformer
from tests.helpers.small import tokens as small_tokens

GROUPED: dict[str, Any] = {
    "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_what_it_did(
    family: str, separate_qkv: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """And one line says what was changed: a warning if it is more than flags."""
    own, inner = family_model(family), family_model(family)
    with caplog.at_level("INFO", "pahq_plugin"):
        model = pahq.adapt(inner, separate_qkv=separate_qkv)
    assert (model(tokens()[0]) - own(tokens()[0])).abs().max() <= 1e-5
    (line,) = (record for record in caplog.records if record.name.startswith("pahq_plugin"))
    assert "use_attn_result on" in line.message
    assert ("use_split_qkv_input on" in line.message) == separate_qkv
    grouped, normed = own.cfg.n_key_value_heads is not None, family == "gemma-2"
    assert (f"for each of {own.cfg.n_heads} heads" in line.message) == grouped
    assert ("norms after attention" in line.message) == normed
    assert (line.levelname == "WARNING") == (grouped or normed)


def test_a_model_with_every_flag_set_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pahq_plugin"):
        pahq.adapt(transformer())
    assert not caplog.records


@pytest.mark.parametrize("family", ["llama-3", "gemma"])
def test_ungrouped_heads_are_those_of_a_model_without_groups(family: str) -> None:
    """Every effect is that of the model whose heads have copies of their group's weights."""
    grouped = family_model(family)
    groups = grouped.cfg.n_key_value_heads
    record = {**grouped.cfg.to_dict(), "n_key_value_heads": None, "seed": None}
    plain = HookedTransformer(HookedTransformerConfig.from_dict(record)).eval().requires_grad_(False)
    weights = {
        name.replace("._", "."): value.repeat_interleave(grouped.cfg.n_heads // groups, dim=0)
        if "._" in name
        else value
        for name, value in grouped.state_dict().items()
    }
    plain.load_state_dict(weights)
    taken = [
        pahq.discover(
            pahq.adapt(model), family_loader(), method="acdc", threshold=0.003, progress=False
        ).decisions
        for model in (grouped, plain)
    ]
    assert [(d.edge.name, d.kept) for d in taken[0]] == [(d.edge.name, d.kept) for d in taken[1]]
    for ours, theirs in zip(*taken, strict=True):
        assert abs(ours.effect - theirs.effect) <= 1e-6


def prefix_cache(model: HookedTransformer, prompts: Tensor) -> HookedTransformerKeyValueCache:
    """Frozen keys and values of a prefix ``[prompt, pos]``, as the model has them before `adapt`."""
    cache = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", len(prompts))
    with torch.inference_mode():
        model(prompts, past_kv_cache=cache)
    cache.freeze()
    return cache


def test_caches_of_grouped_models_are_repeated() -> None:
    inner, whole = transformer(**GROUPED), small_tokens(length=8)
    expected, cache = inner(whole)[:, 3:], prefix_cache(inner, whole[:, :3])
    model = pahq.adapt(inner, kv_caches=[cache])
    assert cache.entries[0].past_keys.shape[2] == 2  # the user's own stays as it is
    for _ in range(2):  # and a frozen one does not grow
        assert (model(whole[:, 3:]) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("engine", ["incremental", "host"])
@pytest.mark.parametrize("method", ["acdc", "pahq"])
def test_searches_behind_a_common_prefix(engine: str, method: str) -> None:
    inner = transformer(**GROUPED)
    model = pahq.adapt(inner, kv_caches=[prefix_cache(inner, small_tokens(7, length=3))])
    result = pahq.discover(model, loader(), method=method, threshold=0.01, engine=engine, progress=False)
    assert result.settings["engine"] == engine
    report = replay(model, loader(), result.decisions, threshold=0.01)
    assert report.agrees, report
    assert 0.02 <= report.share_kept <= 0.6, report


def plus(change: Tensor, head: int | None = None) -> Callable[..., Tensor]:
    """A hook that adds to an activation, or to one head's."""

    def hook(value: Tensor, **_: Any) -> Tensor:
        value = value.clone()
        (value if head is None else value[:, :, head]).add_(change)
        return value

    return hook


def flagged(model: HookedTransformer) -> HookedTransformer:
    """The model with split inputs, and nothing else that `adapt` does."""
    cfg = model.cfg
    cfg.use_attn_result = cfg.use_split_qkv_input = cfg.use_hook_mlp_in = True
    cfg.ungroup_grouped_query_attention = True
    return model


def contributions(model: HookedTransformer, prompts: Tensor) -> dict[str, Tensor]:
    """What each source adds to the residual stream, ``[batch, pos, d_model]``: of a head the share of
    ``hook_attn_out`` that its result has in the sum of all results, coordinate by coordinate."""
    _, seen = model.run_with_cache(prompts)
    made = {"Resid Start": seen["blocks.0.hook_resid_pre"]}
    for layer in range(model.cfg.n_layers):
        result = seen[f"blocks.{layer}.attn.hook_result"]
        shares = seen[f"blocks.{layer}.hook_attn_out"][:, :, None] * result / result.sum(2, keepdim=True)
        made |= {f"A{layer}.{head}": shares[:, :, head] for head in range(model.cfg.n_heads)}
        made[f"MLP {layer}"] = seen[f"blocks.{layer}.hook_mlp_out"]
    return made


def test_patches_behind_a_norm_are_interventions_on_the_residual_stream() -> None:
    """Every single edge of a post-norm model, against hooks of the model as TransformerLens has it."""
    clean, corrupt = tokens()
    own = flagged(family_model("gemma-2", dtype=torch.float64))
    given, other = contributions(own, clean), contributions(own, corrupt)
    model = pahq.adapt(family_model("gemma-2", dtype=torch.float64))
    outputs = src_ablations(model, corrupt)
    for edge in canonical_edges(model):
        change = other[edge.src.name] - given[edge.src.name]
        hook = (edge.dest.module_name, plus(change, edge.dest.head_idx))
        expected = own.run_with_hooks(clean, fwd_hooks=[hook])
        assert (patched_logits(model, clean, outputs, {edge}) - expected).abs().max() <= 1e-9, edge


def test_all_heads_of_a_layer_are_its_attention_output() -> None:
    """Behind a norm, too: patching every edge from block 0's heads replaces its ``hook_attn_out``."""
    clean, corrupt = tokens()
    own = flagged(family_model("gemma-2", dtype=torch.float64))
    name = "blocks.0.hook_attn_out"
    other = own.run_with_cache(corrupt)[1][name]
    expected = own.run_with_hooks(clean, fwd_hooks=[(name, lambda value, **_: other)])
    model = pahq.adapt(family_model("gemma-2", dtype=torch.float64))
    edges = {edge for edge in model.edges if edge.src.name.startswith("A0.")}
    patched = patched_logits(model, clean, src_ablations(model, corrupt), edges)
    assert (patched - expected).abs().max() <= 1e-9


def with_bias() -> HookedTransformer:
    model = family_model("gemma-2")
    model.blocks[1].attn.b_O.data[0] = 0.1
    return model


def encoder() -> HookedEncoder:
    config = family_model("gpt2").cfg.to_dict() | {"normalization_type": "LN", "d_vocab": 30}
    return HookedEncoder(HookedTransformerConfig.from_dict(config))


REFUSED = {
    "patchable": (lambda: pahq.adapt(transformer()), "PatchableModel"),
    "encoder": (encoder, "HookedEncoder"),
    "bias": (with_bias, r"blocks\.1\.attn\.b_O"),
    "dropped norms": (
        lambda: changed(original_architecture="MixtralForCausalLM", normalization_type="RMSPre"),
        "Mixtral",
    ),
}


def changed(**flags: Any) -> HookedTransformer:
    model = transformer()
    for name, value in flags.items():
        setattr(model.cfg, name, value)
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_patched_truthfully_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        pahq.adapt(make())  # type: ignore[arg-type]


def cached(inner: HookedTransformer, cache: HookedTransformerKeyValueCache) -> PatchableModel:
    """As a user of the host alone makes it."""
    return patchable_model(flagged(inner), True, "last_seq", separate_qkv=True, kv_caches=(cache,))


def test_caches_that_do_not_fit_are_refused() -> None:
    inner, prompts = transformer(**GROUPED), small_tokens(length=3)
    cache = prefix_cache(inner, prompts)
    with pytest.raises(ModelError, match="2 heads"):
        pahq.adapt(transformer(), kv_caches=[cache])
    with pytest.raises(ModelError, match="2 groups"):
        pahq.discover(cached(inner, cache), loader(), progress=False)
    plain = transformer()
    cache = prefix_cache(plain, prompts)
    cache.unfreeze()
    with pytest.raises(ModelError, match="freeze"):
        pahq.discover(cached(plain, cache), loader(), progress=False)
