"""Small random host models with random prompts, and one whose numbers are worked out on paper.

One description of the valid combinations (`_assemble`) serves both `random_architecture`, which
draws from a seed, and the hypothesis strategy `architectures`, which shrinks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import AblationType
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.patchable_model import PatchableModel
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

N_BATCHES = 2
"""Batches of every loader made here."""

MAX_EDGES = 700
"""Above this the oracles, two full forwards an edge, take more than seconds."""

Choose = Callable[[Sequence[Any]], Any]
"""Picks one of several options."""


@dataclass(frozen=True)
class Architecture:
    """A small transformer, its prompts, and the question asked of it."""

    seed: int
    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    attn_only: bool
    normalization: Literal["LN", "LNPre", "RMS", "RMSPre"] | None
    positional: Literal["standard", "rotary"]
    rotary_dim: int | None  # only with rotary positions; even
    parallel_attn_mlp: bool
    gated_mlp: bool
    act_fn: str
    attention_dir: Literal["causal", "bidirectional"]
    dtype: torch.dtype
    separate_qkv: bool
    positional_edges: bool
    out: Literal["last_seq", "not_first_seq"] | None  # the host's output slice
    d_vocab: int
    n_prompts: int  # of all batches together
    length: int  # tokens of a prompt
    diverge: int  # first position at which a clean and its corrupt prompt differ
    ablation: AblationType
    metric: Literal["kl_div", "mse", "logit_diff"]

    @property
    def n_edges(self) -> int:
        """Edges of the host's factorised graph."""
        return _count_edges(
            self.n_layers,
            self.n_heads,
            self.separate_qkv,
            self.attn_only,
            self.parallel_attn_mlp,
            self.length if self.positional_edges else 1,
        )


def random_architecture(seed: int, *, max_edges: int = MAX_EDGES) -> Architecture:
    """A valid architecture of at most `max_edges` edges; equal seeds give equal ones."""
    return _assemble(random.Random(seed).choice, seed, max_edges)


@st.composite
def architectures(draw: st.DrawFn, max_edges: int = MAX_EDGES) -> Architecture:
    """Valid architectures; a failing one shrinks towards one plain layer with one head."""
    seed = draw(st.integers(0, 2**16))
    return _assemble(lambda options: draw(st.sampled_from(options)), seed, max_edges)


def build(architecture: Architecture) -> tuple[PatchableModel, PromptDataLoader]:
    """The factorised host model on the CPU, in evaluation mode, and a loader of two batches.

    Everything follows from the architecture. The float64 model has the weights of the float32
    one exactly, so that the pair tells rounding from mistakes.
    """
    transformer = HookedTransformer(_config(architecture)).eval()
    fill(transformer, torch.Generator().manual_seed(architecture.seed))
    model = patchable_model(
        transformer,
        factorized=True,
        slice_output=architecture.out,
        seq_len=architecture.length if architecture.positional_edges else None,
        separate_qkv=architecture.separate_qkv,
    )
    return model, _loader(architecture, model)


def micro_model() -> tuple[PatchableModel, PromptDataLoader]:
    """One attention layer with two heads whose effects can be worked out on paper.

    Width 2, heads of width 1, no normalisation, no biases, no positions; the logits are the
    residual stream at the last position. Token 0 is (0, 0), A is (2, 0), B is (0, 2). The prompts
    are 0 A against 0 B, and in the second batch 0 B against 0 A.

    Head 0: q = 0, v = x0, writes (2z, 0). It attends evenly, so z = x0 / 2 of the last token.
    Head 1: q = x0 ln 3 / 2, k = x0 / 2, v = 2 x0 - x1, writes (0, z). On A, q = ln 3 and k = 1, so
    it attends 1/4 to token 0 and 3/4 to A; on B evenly.

    ===========================  =================  =================
    ..                           0 A against 0 B    0 B against 0 A
    ===========================  =================  =================
    head 0 writes                z = 1: (2, 0)      z = 0: (0, 0)
    head 1 writes                z = 3: (0, 3)      z = -1: (0, -1)
    clean logits                 (4, 3)             (0, 1)
    patched, and its ``mse``
    ``Resid Start->Resid End``   (2, 5): 4          (2, -1): 4
    ``A0.0->Resid End``          (2, 3): 2          (2, 1): 2
    ``A0.1->Resid End``          (4, -1): 8         (0, 5): 8
    ``Resid Start->A0.0.Q``      (4, 3): 0          (0, 1): 0
    ``Resid Start->A0.0.K``      (4, 3): 0          (0, 1): 0
    ``Resid Start->A0.0.V``      (2, 3): 2          (2, 1): 2
    ``Resid Start->A0.1.Q``      (4, 2): 1/2        (0, 1): 0
    ``Resid Start->A0.1.K``      (4, 2): 1/2        (0, 1): 0
    ``Resid Start->A0.1.V``      (4, -3/2): 81/8    (0, 4): 9/2
    ===========================  =================  =================

    ACDC with threshold 3 on the first batch, loss ``mse``, canonical order: ``Resid Start`` (4)
    stays; ``A0.0`` (2) goes, logits (2, 3), loss 2; ``A0.1`` would give (2, -1), loss 10, and
    stays. Head 0 is now cut off: its inputs go with effect 0. ``A0.1.Q`` gives (2, 2), loss 5/2,
    and goes with effect 1/2; ``A0.1.K`` then changes nothing and goes; ``A0.1.V`` would give
    (2, -1), loss 10, effect 15/2, and stays.
    """
    config = HookedTransformerConfig(
        n_layers=1,
        n_heads=2,
        d_model=2,
        d_head=1,
        n_ctx=2,
        d_vocab=3,
        d_vocab_out=2,
        attn_only=True,
        normalization_type=None,
        use_attn_result=True,
        use_split_qkv_input=True,
        device="cpu",
    )
    transformer = HookedTransformer(config).eval()
    weights = {name: torch.zeros_like(p) for name, p in transformer.named_parameters()}
    weights["embed.W_E"] = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    weights["unembed.W_U"] = torch.eye(2)
    heads = {  # head d_model d_head, but for W_O: head d_head d_model
        "W_Q": [[[0.0], [0.0]], [[math.log(3) / 2], [0.0]]],
        "W_K": [[[1.0], [1.0]], [[0.5], [0.0]]],
        "W_V": [[[1.0], [0.0]], [[2.0], [-1.0]]],
        "W_O": [[[2.0, 0.0]], [[0.0, 1.0]]],
    }
    weights |= {f"blocks.0.attn.{name}": torch.tensor(value) for name, value in heads.items()}
    transformer.load_state_dict(weights, strict=False)
    model = patchable_model(transformer, factorized=True, slice_output="last_seq", separate_qkv=True)
    a, b = torch.tensor([0, 1]), torch.tensor([0, 2])
    zero, one = torch.tensor([0]), torch.tensor([1])
    dataset = PromptDataset([a, b], [b, a], [zero, one], [one, zero])
    return model, PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=1)


def _count_edges(
    n_layers: int, n_heads: int, separate_qkv: bool, attn_only: bool, parallel: bool, n_pos: int
) -> int:
    """Pairs of a source and a later destination, times positions."""
    n_mlps = 0 if attn_only else 1
    before = [1 + block * (n_heads + n_mlps) for block in range(n_layers + 1)]
    into_heads = n_heads * (3 if separate_qkv else 1) * sum(before[:-1])
    into_mlps = n_mlps * sum(n + (0 if parallel else n_heads) for n in before[:-1])
    return (into_heads + into_mlps + before[-1]) * n_pos


def _assemble(choose: Choose, seed: int, max_edges: int) -> Architecture:
    """Choose every field among the options that the fields before it allow, simplest first."""

    def count(n_heads: int = 1, n_pos: int = 1) -> int:
        return _count_edges(n_layers, n_heads, separate_qkv, attn_only, parallel, n_pos)

    n_layers = choose((1, 2, 3, 4))
    separate_qkv = choose((False, True))
    attn_only = choose((False, False, True))
    parallel = choose((False, False, True)) and not attn_only
    length = choose((4, 5, 6, 8))
    n_heads = choose([n for n in (1, 2, 3, 4, 5, 8) if count(n) <= max_edges])
    d_head = choose((3, 5, 7, 8, 16))
    rotary = choose((False, True)) and d_head % 2 == 0
    return Architecture(
        seed=seed,
        n_layers=n_layers,
        n_heads=n_heads,
        d_head=d_head,
        d_model=choose((6, 12, 17, 24)),
        d_mlp=choose((5, 16, 33)),
        attn_only=attn_only,
        normalization=choose((None, "LN", "LNPre", "RMS", "RMSPre")),
        positional="rotary" if rotary else "standard",
        rotary_dim=choose((d_head, d_head // 2)) if rotary else None,
        parallel_attn_mlp=parallel,
        gated_mlp=choose((False, False, True)) and not attn_only,
        act_fn=choose(("relu", "gelu", "gelu_new", "silu")),
        attention_dir=choose(("causal", "causal", "bidirectional")),
        dtype=choose((torch.float32, torch.float32, torch.float64)),
        separate_qkv=separate_qkv,
        positional_edges=choose((False, True)) and count(n_heads, length) <= max_edges,
        out=choose(("last_seq", None, "not_first_seq")),
        d_vocab=choose((11, 19, 30)),
        n_prompts=choose((4, 6, 8)),
        length=length,
        diverge=choose((1, length - 2, length - 1)),
        ablation=choose((AblationType.RESAMPLE,) * 4 + tuple(AblationType)),
        metric=choose(("kl_div", "kl_div", "mse", "logit_diff")),
    )


def _config(architecture: Architecture) -> HookedTransformerConfig:
    """The TransformerLens configuration, with the flags that the host's graph needs."""
    return HookedTransformerConfig(
        n_layers=architecture.n_layers,
        n_heads=architecture.n_heads,
        d_head=architecture.d_head,
        d_model=architecture.d_model,
        d_mlp=None if architecture.attn_only else architecture.d_mlp,
        d_vocab=architecture.d_vocab,
        n_ctx=architecture.length + 3,  # longer than the prompts, to notice who confuses them
        attn_only=architecture.attn_only,
        act_fn=None if architecture.attn_only else architecture.act_fn,
        gated_mlp=architecture.gated_mlp,
        parallel_attn_mlp=architecture.parallel_attn_mlp,
        normalization_type=architecture.normalization,
        positional_embedding_type=architecture.positional,
        rotary_dim=architecture.rotary_dim,
        attention_dir=architecture.attention_dir,
        dtype=architecture.dtype,
        use_attn_result=True,
        use_split_qkv_input=architecture.separate_qkv,
        use_attn_in=not architecture.separate_qkv,
        use_hook_mlp_in=not architecture.attn_only,
        init_weights=False,
        device="cpu",
    )


def fill(transformer: HookedTransformer, generator: torch.Generator) -> None:
    """Give every parameter random values, drawn in float32 whatever its type."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            parameter.copy_(_values(name, parameter.shape, generator))


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random values of one parameter.

    Matrices have std 1 / sqrt(fan-in). Queries and keys are larger, so that attention has a
    pattern; what each head and MLP writes has a gain of its own, spread over 1.5 orders of
    magnitude, so that the effects of edges are spread over more.
    """
    normal = torch.randn(shape, generator=generator)
    module, leaf = name.split(".")[-2:]
    if module.startswith("ln"):
        return 1 + 0.2 * normal if leaf == "w" else 0.2 * normal
    if leaf.startswith("b_"):
        return 0.2 * normal
    if leaf in ("W_E", "W_pos"):
        return normal
    if leaf in ("W_O", "W_out"):
        writers = (shape[0], 1, 1) if leaf == "W_O" else (1, 1)
        normal = normal * 10 ** (0.2 - 1.5 * torch.rand(writers, generator=generator))
    elif leaf in ("W_Q", "W_K"):
        normal = 1.5 * normal
    return normal / math.sqrt(shape[-2])


def _loader(architecture: Architecture, model: PatchableModel) -> PromptDataLoader:
    """Random prompts whose corrupt versions differ somewhere from `diverge` on.

    The first prompt of each batch differs at `diverge`, the others there or later.
    """
    generator = torch.Generator().manual_seed(architecture.seed + 1)
    n, length, vocab = architecture.n_prompts, architecture.length, architecture.d_vocab
    batch_size = n // N_BATCHES
    clean = torch.randint(vocab, (n, length), generator=generator)  # batch pos
    start = torch.randint(architecture.diverge, length, (n, 1), generator=generator)
    start[::batch_size] = architecture.diverge
    shift = torch.randint(1, vocab, (n, length), generator=generator)
    corrupt = torch.where(torch.arange(length) < start, clean, (clean + shift) % vocab)
    n_answers = 1 + architecture.seed % 2
    ranked = _ranked_tokens(model, clean, n_answers + 2, generator)
    return PromptDataLoader(
        PromptDataset(clean, corrupt, list(ranked[:, :n_answers]), list(ranked[:, n_answers:])),
        seq_len=length if architecture.positional_edges else None,
        diverge_idx=0,
        batch_size=batch_size,
        shuffle=False,
    )


def _ranked_tokens(
    model: PatchableModel, clean: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Different random tokens for each prompt, those first that the model prefers: batch token.

    The first are the answers: a circuit is looked for where the model does the task.
    """
    with torch.no_grad():
        logits = model(clean)[model.out_slice]
    mean = logits.flatten(start_dim=1, end_dim=-2).mean(dim=1) if logits.ndim > 2 else logits
    tokens = torch.rand(mean.shape, generator=generator).argsort(dim=-1)[:, :count]
    return tokens.gather(1, mean.gather(1, tokens).argsort(dim=-1, descending=True))
