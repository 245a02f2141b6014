"""The host's own functions run in mixed precision on a lent model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import PatchType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from torch.nn.functional import log_softmax
from transformer_lens import HookedTransformerKeyValueCache

from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.backend import mixed_precision
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.mixed import LEAST_DB, MOST_DB, ablated, int8
from tests.helpers.small import (
    activations,
    attention_names,
    loader,
    logits,
    patchable,
    signal_to_noise,
    small_model,
    tokens,
    transformer,
)


def correlation(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    pairs = [torch.cat([scores[name].flatten() for name in sorted(first)]) for scores in (first, second)]
    assert all(bool(each.isfinite().all()) for each in pairs)
    return float(torch.corrcoef(torch.stack(pairs))[0, 1])


def patched(model: PatchableModel, corrupt: Tensor, edges: list[Any]) -> Tensor:
    with patch_mode(model, corrupt, edges=edges):
        return logits(model, tokens())


@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("seq_len", [None, 6])
@pytest.mark.parametrize("low", ["fp8_e4m3", "int8"])
def test_patch_mode_runs_in_mixed_precision(separate_qkv: bool, seq_len: int | None, low: str) -> None:
    inner = transformer(separate_qkv=separate_qkv)
    model = patchable(inner, separate_qkv=separate_qkv, seq_len=seq_len)
    corrupt, edges = ablated(model), canonical_edges(model)[::5]
    exact, nothing = patched(model, corrupt, edges), patched(model, corrupt, [])
    with mixed_precision(model, PrecisionConfig(low=low)) as backend:
        backend.investigate(edges[1])
        mixed = patched(model, corrupt, edges)
    assert LEAST_DB[low] - 10 < signal_to_noise(exact, mixed) < MOST_DB
    assert signal_to_noise(exact, nothing) < 6


def test_an_edge_of_one_position_changes_that_position_alone() -> None:
    model = patchable(transformer(), seq_len=6)
    corrupt, names = ablated(model), attention_names(0, "q")
    with mixed_precision(model, int8()):
        with patch_mode(model, corrupt, edges=[]):
            before = activations(model, names, tokens())[names[0]]
        with patch_mode(model, corrupt, edges=[model.edge_name_dict[4]["Resid Start->A0.2.Q"]]):
            after = activations(model, names, tokens())[names[0]]
    changed = (before != after).any(dim=0).any(dim=-1)  # [pos, head]
    assert changed.nonzero().tolist() == [[4, 2]]


def test_run_circuits_runs_in_mixed_precision(model: PatchableModel) -> None:
    scores = {
        name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(i))
        for i, (name, mask) in enumerate(sorted(model.patch_masks.items()))
    }
    counts = [0, 40, model.n_edges]

    def run() -> dict[int, Tensor]:
        outputs = run_circuits(model, loader(), counts, scores, PatchType.TREE_PATCH)
        return {count: next(iter(by_batch.values())) for count, by_batch in outputs.items()}

    exact = run()
    with mixed_precision(model, PrecisionConfig()):
        mixed = run()
    assert list(mixed) == list(exact) == counts
    for count in counts:
        assert 8 < signal_to_noise(exact[count], mixed[count]) < MOST_DB


def test_acdc_of_the_host_runs_in_mixed_precision() -> None:
    model = small_model(n_layers=1, n_heads=3)
    edge_count = model.n_edges
    with mixed_precision(model, PrecisionConfig(low="int8", mlp="bf16")):
        scores = acdc_prune_scores(model, loader(), None, tao_exps=[-2], tao_bases=[1])
    values = torch.cat([score.flatten() for score in scores.values()])
    assert len(values) == edge_count
    assert 0 < int(values.isinf().sum()) < edge_count
    assert set(values.tolist()) == {0.01, float("inf")} or len(set(values.tolist())) == 2


def host_gradients(model: PatchableModel) -> dict[str, Tensor]:
    return mask_gradient_prune_scores(
        model, loader(), None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
    )


@pytest.mark.parametrize("low", ["fp8_e4m3", "fp8_e5m2", "int8", "bf16"])
@pytest.mark.parametrize("seq_len", [None, 6])
def test_mask_gradients_follow_those_of_fp32(low: str, seq_len: int | None) -> None:
    model = patchable(transformer(), seq_len=seq_len)
    exact = host_gradients(model)
    with mixed_precision(model, PrecisionConfig(low=low, mlp=low)) as backend:
        assert correlation(exact, host_gradients(model)) > 0.9
        backend.investigate((0, 2))
        assert correlation(exact, host_gradients(model)) > 0.9


@pytest.mark.parametrize("size", [1e-4, 1e-8])
def test_tiny_gradients_arrive(model: PatchableModel, size: float) -> None:
    """A cast of the gradient to E4M3 would turn each into zero."""
    gradients = []
    for precision in (PrecisionConfig(policy="full"), PrecisionConfig()):
        residual = torch.zeros(2, 3, 32, requires_grad=True)
        with mixed_precision(model, precision):
            start = residual + activations(model, ["blocks.0.hook_resid_pre"], tokens(length=3))[
                "blocks.0.hook_resid_pre"
            ][:2]  # fmt: skip
            (size * model(start, start_at_layer=0)[:, -1, 3]).sum().backward()
        assert residual.grad is not None
        gradients.append(residual.grad)
    assert bool((gradients[1] != 0).all())
    assert float(torch.corrcoef(torch.stack([g.flatten() for g in gradients]))[0, 1]) > 0.9


def cached_model(prompts: Tensor, prefix: int) -> PatchableModel:
    """The model with a frozen cache of the first tokens, as the host's loader makes it."""
    inner = transformer(seed=3)
    cache = HookedTransformerKeyValueCache.init_cache(inner.cfg, "cpu", len(prompts))
    with torch.inference_mode():
        inner(prompts[:, :prefix], past_kv_cache=cache)
    cache.freeze()
    return patchable(inner, kv_caches=(cache,))


@pytest.mark.parametrize("prefix", [1, 3])
def test_caches_of_a_common_prefix_are_used(prefix: int) -> None:
    prompts = tokens()
    model = cached_model(prompts, prefix)
    assert model.kv_caches is not None
    keys = [entry.past_keys.clone() for entry in model.kv_caches[4].entries]
    rest = prompts[:, prefix:]
    exact = logits(model, rest)
    whole = logits(patchable(transformer(seed=3)), prompts)[:, prefix:]
    torch.testing.assert_close(exact, whole, rtol=1e-4, atol=1e-4)
    with mixed_precision(model, int8(policy="full")):
        torch.testing.assert_close(logits(model, rest), exact, rtol=1e-5, atol=1e-5)
    with mixed_precision(model, int8()) as backend:
        backend.investigate((1, 1))
        first = logits(model, rest)
        assert torch.equal(logits(model, rest), first)
    assert LEAST_DB["int8"] - 10 < signal_to_noise(exact, first) < MOST_DB
    assert all(torch.equal(a.past_keys, b)
               for a, b in zip(model.kv_caches[4].entries, keys, strict=True))  # fmt: skip


def test_gradients_pass_with_caches() -> None:
    model = cached_model(tokens(), 2)
    corrupt = src_ablations(model, tokens(1)[:, 2:])
    mask = next(w.patch_mask for w in model.dest_wrappers if "1.hook_k" in w.module_name)
    gradients = []
    for precision in (int8(policy="full"), int8()):
        mask.requires_grad_(True)
        with mixed_precision(model, precision), patch_mode(model, corrupt.clone(), edges=[]):
            log_softmax(model(tokens()[:, 2:])[:, -1], dim=-1)[:, 5].sum().backward()
        assert mask.grad is not None
        gradients.append(mask.grad.flatten())
        mask.grad = None
    assert float(torch.corrcoef(torch.stack(gradients))[0, 1]) > 0.9
