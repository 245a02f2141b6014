"""Models and prompts that benchmarks run on: bundled problems, and shapes with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from transformer_lens import HookedTransformer, HookedTransformerConfig

import pahq_plugin as pahq


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: its key.
        threshold: of the search.
        problem: a bundled problem, or ``None`` for random weights of the shape below.
        layers, heads, width, d_mlp, vocabulary: shape of a random model.
        prompts, length: of a batch.
        out: ``"last_seq"`` or ``None`` for all positions.
        gated: a model of Llama's kind: gated MLPs, rotary positions, RMS norms.
    """

    name: str
    threshold: float
    problem: str | None = None
    layers: int = 12
    heads: int = 12
    width: int = 768
    d_mlp: int = 3072
    vocabulary: int = 500
    prompts: int = 8
    length: int = 16
    out: str | None = "last_seq"
    gated: bool = False


CASES = {
    case.name: case
    for case in (
        Case("ioi", 1e-3, problem="ioi"),
        Case("greater-than", 1e-2, problem="greater-than"),
        Case("induction", 1e-2, problem="induction"),
        Case("tiny-shape", 1e-3, layers=4, heads=4, width=128, d_mlp=512),
        Case("small-shape", 1e-3, layers=6, heads=6, width=192, d_mlp=768),
        Case("small-shape-dense", 1e-4, layers=6, heads=6, width=192, d_mlp=768),
        Case("small-shape-16-prompts", 1e-3, layers=6, heads=6, width=192, d_mlp=768, prompts=16),
        Case("medium-shape", 1e-3, layers=8, heads=8, width=384, d_mlp=1536),
        Case("gpt2-shape", 1e-4),
        Case("gpt2-shape-all-positions", 1e-4, out=None),
        Case("gpt2-shape-50257-words", 1e-4, vocabulary=50257),
    )
}


def load(case: Case, device: str = "cpu") -> tuple[PatchableModel, PromptDataLoader]:
    """Model and train loader of a case on ``device``; everything is seeded, the same on each."""
    if case.problem is not None:
        problem = pahq.load_problem(case.problem, batch_size=case.prompts, device=device)
        return problem.model, problem.train_loader
    config = HookedTransformerConfig(
        n_layers=case.layers,
        n_heads=case.heads,
        d_model=case.width,
        d_head=case.width // case.heads,
        d_mlp=case.d_mlp,
        n_ctx=case.length,
        d_vocab=case.vocabulary,
        act_fn="silu" if case.gated else "gelu",
        normalization_type="RMS" if case.gated else "LN",
        gated_mlp=case.gated,
        positional_embedding_type="rotary" if case.gated else "standard",
        rotary_dim=case.width // case.heads if case.gated else None,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        device="cpu",
    )
    model = HookedTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.8 / case.width**0.5, generator=generator)
    model.to(device, print_details=False)
    patchable = patchable_model(
        model,
        True,
        case.out,
        None,
        True,
        device=torch.device(device),  # type: ignore[arg-type]
    )
    return patchable.eval(), _loader(case, generator, device)


def _loader(case: Case, generator: torch.Generator, device: str) -> PromptDataLoader:
    """Random prompts that differ from position 1 on."""
    size = (case.prompts, case.length)
    clean = torch.randint(case.vocabulary, size, generator=generator)
    corrupt = torch.randint(case.vocabulary, size, generator=generator)
    corrupt[:, 0] = clean[:, 0]
    answers = [torch.tensor([0], device=device)] * case.prompts
    dataset = PromptDataset(clean.to(device), corrupt.to(device), answers, answers)
    return PromptDataLoader(dataset, seq_len=case.length, diverge_idx=0, batch_size=case.prompts)
