"""Where candidates act, and the cones that are remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attr import evolve
from auto_circuit.data import PromptPairBatch
from auto_circuit.utils.patchable_model import PatchableModel

from pahq_plugin.engines.incremental.cones import Plans, first_changes, shape_of
from pahq_plugin.engines.incremental.kept_graph import KeptGraph
from pahq_plugin.host import AblationType
from tests.helpers.small import loader, patchable, small_model, tokens, transformer

RESAMPLE = AblationType.RESAMPLE


def pair(clean: torch.Tensor, corrupt: torch.Tensor) -> PromptPairBatch:
    (batch,) = loader()
    return evolve(batch, clean=clean, corrupt=corrupt)


def differing_from(*positions: int) -> PromptPairBatch:
    """Prompts of 6 tokens that differ at one position each; at none where it is 6."""
    clean, corrupt = tokens(0), tokens(0)
    for row, first in enumerate(positions):
        corrupt[row, first : first + 1] = (clean[row, first : first + 1] + 1) % 40
    return pair(clean, corrupt)


def test_nothing_changes_before_the_first_difference() -> None:
    model, batch = small_model(), differing_from(5, 2, 6, 4)
    assert first_changes(model, batch, RESAMPLE).tolist() == [5, 2, 6, 4]
    assert shape_of(model, [batch], RESAMPLE).first_change == 2
    assert shape_of(model, [batch, differing_from(1, 6, 6, 6)], RESAMPLE).first_change == 1


@pytest.mark.parametrize("ablation", [kind for kind in AblationType if kind is not RESAMPLE])
def test_other_ablations_change_every_position(ablation: AblationType) -> None:
    assert not first_changes(small_model(), differing_from(5, 2, 6, 4), ablation).any()


def test_later_tokens_change_earlier_positions_without_a_causal_mask() -> None:
    model = small_model(attention_dir="bidirectional")
    assert not first_changes(model, differing_from(5, 2, 6, 4), RESAMPLE).any()


class LeftPadding:
    """What the host asks of a tokenizer that pads on the left with its first token, as GPT-2's."""

    padding_side = "left"
    pad_token_id = bos_token_id = 0


def test_an_equal_token_that_is_padding_in_one_prompt_alone_is_a_difference() -> None:
    """Its first 0 is padding where another one follows, else the start of the prompt."""
    model = small_model()
    clean, corrupt = torch.tensor([[0, 0, 3, 5, 7, 9]] * 4), torch.tensor([[0, 4, 3, 5, 7, 9]] * 4)
    assert first_changes(model, pair(clean, corrupt), RESAMPLE).tolist() == [1] * 4
    model.wrapped_model.tokenizer = LeftPadding()
    assert first_changes(model, pair(clean, corrupt), RESAMPLE).tolist() == [0] * 4


def plans_of(model: PatchableModel, **changes: Any) -> tuple[KeptGraph, Plans]:
    batch = differing_from(0, 0, 0, 0)
    graph = KeptGraph(model, shape_of(model, [batch], RESAMPLE), torch.device("cpu"))
    return graph, Plans(graph, model, len(batch.clean))


def test_a_cone_is_remembered_until_an_edge_behind_it_goes() -> None:
    model = small_model()
    graph, plans = plans_of(model)
    edges = model.edge_name_dict[None]
    cone = plans.cone([edges["Resid Start->A1.2.Q"]])
    graph.remove([edges["Resid Start->A0.0.K"]])  # before it
    assert plans.cone([edges["A0.1->A1.2.Q"]]) is cone
    graph.remove([edges["A1.2->MLP 1"]])
    after = plans.cone([edges["A0.1->A1.2.Q"]])
    assert after is not cone
    assert [graph.stages[step.stage].kind for step in cone] == ["head", "mlp", "output"]
    assert [graph.stages[step.stage].kind for step in after] == ["head", "output"]


def test_edges_act_at_their_own_positions() -> None:
    model = patchable(transformer(), seq_len=6)
    _, plans = plans_of(model)
    edges = [model.edge_name_dict[i]["Resid Start->MLP 0"] for i in (1, 4)]
    assert np.flatnonzero(plans.touched(edges)).tolist() == [1, 4]
    _, whole = plans_of(small_model())
    assert whole.touched([next(iter(small_model().edges))]).all()


def test_a_budget_holds_as_many_rows_as_fit_and_at_least_one() -> None:
    model = small_model()
    _, plans = plans_of(model)
    steps = plans.cone([model.edge_name_dict[None]["Resid Start->A0.0.V"]])
    one = plans.row_bytes(steps)
    assert [plans.fitting_rows(steps, n) for n in (0, one - 1, 3 * one, 4 * one - 1)] == [1, 1, 3, 3]
