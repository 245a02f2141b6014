"""Where the prompts of a search let a change be seen at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pahq_plugin.graph import Shape
from pahq_plugin.host import AblationType, PatchableModel, PromptPairBatch
from pahq_plugin.host.blocks import embed, output_positions
from pahq_plugin.positions import Ints


def shape_of(model: PatchableModel, prompts: Sequence[PromptPairBatch], ablation: AblationType) -> Shape:
    """Where changes can be seen. With causal attention and resampled activations nothing differs
    before the first token in which clean and corrupt prompts do."""
    length = prompts[0].clean.shape[1]
    outputs = np.zeros(length, dtype=bool)
    outputs[output_positions(model, length)[0]] = True
    first = min(int(first_changes(model, batch, ablation).min()) for batch in prompts)
    return Shape(length, outputs, model.cfg.attention_dir == "causal", first)


def first_changes(model: PatchableModel, batch: PromptPairBatch, ablation: AblationType) -> Ints:
    """Per prompt the position before which nothing can ever change, ``[prompt]``."""
    prompts, length = batch.clean.shape
    if model.cfg.attention_dir != "causal" or ablation is not AblationType.RESAMPLE:
        return np.zeros(prompts, dtype=np.int64)
    differs = batch.clean != batch.corrupt
    masks = [embed(model, tokens)[1] for tokens in (batch.clean, batch.corrupt)]
    if masks[0] is not None and masks[1] is not None:  # one token may be padding in one of the two
        differs = differs | (masks[0] != masks[1])[:, -length:]
    differs = differs.cpu().numpy()
    return np.where(differs.any(axis=1), differs.argmax(axis=1), length)
