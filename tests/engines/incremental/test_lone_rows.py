"""Final streams of rows with one patched edge, against the logits of the host under its patch masks."""

from __future__ import annotations

import pytest
import torch
from auto_circuit.types import AblationType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode

from pahq_plugin.engines.incremental.lone_rows import LonePass, LoneRow
from pahq_plugin.engines.incremental.prompt_groups import prompt_groups
from pahq_plugin.models.blocks import unembed
from tests.helpers.alone import engine
from tests.helpers.replay import cleared_masks
from tests.helpers.small import KINDS, loader, small_model


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_logits_of_the_host_with_that_edge_patched(kind: str) -> None:
    model, prompts = small_model(kind), loader()
    made = engine(model, prompts)
    full, firsts = made._full[0], made._firsts[0]
    (batch,) = prompts
    for at in range(len(full.graph.stages)):
        edges = [edge for edge in made.in_turn(list(model.edges)) if made._graph.place(edge)[0] == at]
        edges = sorted(edges[:: max(1, len(edges) // 6)], key=lambda e: made._graph.place(e)[1])
        places = [made._graph.index(edge)[1] for edge in edges]
        rows = [LoneRow(slot, head, source) for slot, head, _, source in places]
        with torch.inference_mode():
            final = LonePass(full, prompt_groups(firsts, 6), at, None, rows, 10**6).final()
            found = unembed(model, final)[:, :, 0]
        ablated = src_ablations(model, batch.corrupt, AblationType.RESAMPLE)
        for edge, logits in zip(edges, found, strict=True):
            with cleared_masks(model), torch.inference_mode():
                edge.patch_mask(model).data[edge.patch_idx] = 1.0
                with patch_mode(model, ablated):
                    wanted = model(batch.clean)[model.out_slice]
            torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_without_prompts_that_change_every_row_is_the_full_model() -> None:
    full = engine(small_model(), loader())._full[0]
    with torch.inference_mode():
        final = LonePass(full, [], 0, None, [LoneRow(0, 0, 0)] * 2, 10**6).final()
    assert torch.equal(final[1], full.stream(4)[:, -1:])
