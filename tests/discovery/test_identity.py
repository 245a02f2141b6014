"""Checkpoints of another run are refused, with what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.data import PromptPairBatch
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

import pahq_plugin as pahq
from pahq_plugin.discovery.discover import discover
from pahq_plugin.errors import CheckpointError
from pahq_plugin.metrics import Metric, mse
from pahq_plugin.precision.config import FULL_PRECISION
from tests.helpers.checkpoints import THRESHOLD, run, taken
from tests.helpers.refused import refused
from tests.helpers.small import loader, small_model


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    run(path)
    return path


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"threshold": 0.004}, "threshold"),
        ({"method": "acdc"}, "method"),
        ({"ablation": "zero"}, "ablation"),
        ({"metric": "logit_diff"}, "metric"),
        ({"batches": None}, "batches"),
        ({"engine": "host", "precision": FULL_PRECISION}, "engine"),
        ({"precision": pahq.PrecisionConfig(low="bf16", mlp="bf16")}, "precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused(written: Path, settings: dict[str, Any], name: str) -> None:
    before = written.read_bytes()
    with refused(CheckpointError, f"its {name} is"):
        run(written, **settings)
    assert written.read_bytes() == before


def test_other_models_prompts_and_orders_are_refused(written: Path) -> None:
    settings: dict[str, Any] = {"method": "pahq", "threshold": THRESHOLD, "progress": False}
    with pytest.raises(CheckpointError, match="its model is"):
        discover(small_model(seed=9), loader(), checkpoint=written, **settings)
    with pytest.raises(CheckpointError, match="its prompts is"):
        discover(small_model(), loader(seed=9), checkpoint=written, **settings)
    model = small_model()
    order = sorted(model.edges, key=lambda edge: edge.name)
    with pytest.raises(CheckpointError, match="its order is"):
        discover(model, loader(), checkpoint=written, order=order, **settings)


FACTOR = 1.0


def reads_a_global(logits: Tensor, clean: Tensor, batch: PromptPairBatch) -> Tensor:
    return FACTOR * mse(logits, clean, batch)


def _scaled(factor: float) -> Metric:
    def loss(logits: Tensor, clean: Tensor, batch: PromptPairBatch) -> Tensor:
        return factor * mse(logits, clean, batch)

    return loss


def _with_other_norms() -> PatchableModel:
    model = small_model()
    for block in model.blocks:
        block.ln1.eps = 1.0
    return model


def _with_another_buffer() -> PatchableModel:
    model = small_model("rotary_gated")
    model.blocks[0].attn.rotary_sin *= -1
    return model


@pytest.mark.parametrize(
    ("make", "other", "kind"),
    [
        (small_model, _with_other_norms, "configuration"),
        (lambda: small_model("rotary_gated"), _with_another_buffer, "configuration"),
    ],
)
def test_another_configuration_of_the_same_weights_is_refused(
    make: Callable[[], PatchableModel], other: Callable[[], PatchableModel], kind: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"threshold": THRESHOLD, "progress": False, "checkpoint": tmp_path / "c"}
    first = discover(make(), loader(), **settings)
    assert taken(discover(make(), loader(), **settings)) == taken(first)
    with pytest.raises(CheckpointError, match=f"its {kind} is"):
        discover(other(), loader(), **settings)


def test_another_metric_of_the_same_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its code and what it closes over; by what it gives, where it reads a global."""
    settings: dict[str, Any] = {"threshold": THRESHOLD, "progress": False}
    for metric, other, kind in (
        (_scaled(1.0), _scaled(2.0), "metric_content"),
        (reads_a_global, reads_a_global, "corrupt_loss"),
    ):
        path = tmp_path / kind
        first = discover(small_model(), loader(), metric=metric, checkpoint=path, **settings)
        again = discover(small_model(), loader(), metric=metric, checkpoint=path, **settings)
        assert taken(again) == taken(first)
        monkeypatch.setitem(globals(), "FACTOR", 2.0)
        with pytest.raises(CheckpointError, match=f"its {kind} is"):
            discover(small_model(), loader(), metric=other, checkpoint=path, **settings)
        monkeypatch.undo()
