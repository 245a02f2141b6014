"""Models lent in mixed precision: how far off heads may be, and which ones a patch changes."""

from __future__ import annotations

from typing import Any

from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

from pahq_plugin.host.graph import canonical_edges
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.small import activations, attention_names, tokens

LEAST_DB = {
    "fp8_e4m3": 18.0,
    "fp8_e5m2": 12.0,
    "int8": 27.0,
    "bf16": 42.0,
}
"""Least signal-to-noise of a low head's queries, keys and values.

Floats of n mantissa bits: an operand is off by at most 2^-(n+1) of its size, 6.02 (n + 1) dB below
it. Both operands are rounded, independently: 3 dB less. A sum whose terms happen to cancel has less
signal than terms: 3 dB of margin. So 6.02 (n + 1) - 6 dB: 18 for E4M3 (n = 3), 12 for E5M2 (n = 2),
42 for bf16 (n = 7). Scaled rows keep all but negligible entries out of the subnormal numbers.

int8 with a scale per row: an entry is off by at most half a step, max / 254, so the noise relative
to the row's root mean square is at most the crest factor / 254, and the crest factor of d entries is
at most sqrt(d). Two operands and the margin as above: 20 log10(254 / sqrt(32)) - 6 = 27 dB.
"""

MOST_DB = 80.0
"""A head above this is not low: bf16's rms error is some 10 dB below its largest one, FP32's is near
140 dB."""


def int8(**changes: Any) -> PrecisionConfig:
    return PrecisionConfig(**{"low": "int8", "mlp": "int8", **changes})


def ablated(model: PatchableModel, seed: int = 1) -> Tensor:
    """Source outputs on corrupt prompts, in the model's own precision."""
    return src_ablations(model, tokens(seed))


def without_bias(model: PatchableModel, layer: int, values: dict[str, Tensor]) -> list[Tensor]:
    """Q, K and V ``[batch, pos, head, d_head]`` before the bias, which is never rounded."""
    module = model.blocks[layer].attn
    names = attention_names(layer)
    return [values[n] - getattr(module, f"b_{n[-1].upper()}") for n in names]


def patched_heads(
    model: PatchableModel, corrupt: Tensor, layer: int, edges: list[Any]
) -> dict[str, Tensor]:
    """Q, K and V ``[batch, pos, head, d_head]`` of ``layer`` with ``edges`` patched."""
    with patch_mode(model, corrupt, edges=edges):
        values = activations(model, attention_names(layer), tokens(), stop_at_layer=layer + 1)
    return {name[-1]: value for name, value in values.items()}


def changed_heads(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, list[bool]]:
    """For Q, K and V which heads differ, bitwise."""
    return {
        part: (value != after[part]).transpose(0, 2).flatten(1).any(dim=1).tolist()
        for part, value in before.items()
    }


def assert_edges_change_their_head_alone(model: PatchableModel, corrupt: Tensor, layer: int) -> None:
    """Patches every edge from the input into a head of ``layer``."""
    edges = [e for e in canonical_edges(model) if e.src.name == "Resid Start"]
    edges = [e for e in edges if e.dest.name.startswith(f"A{layer}.")]
    assert edges
    before = patched_heads(model, corrupt, layer, [])
    for edge in edges:
        letter = edge.dest.name[-1].lower()
        expected = {part: [False] * 4 for part in "qkv"}
        for part in letter if letter in "qkv" else "qkv":
            expected[part][edge.dest.head_idx or 0] = True
        after = patched_heads(model, corrupt, layer, [edge])
        assert changed_heads(before, after) == expected, edge.name
