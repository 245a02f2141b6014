"""Losses by parts of the vocabulary against the metric on whole logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pahq_plugin.engines.incremental import readout
from pahq_plugin.engines.incremental.readout import Readout
from pahq_plugin.errors import MetricError
from pahq_plugin.metrics import METRICS, row_losses
from pahq_plugin.models.blocks import output_positions, unembed
from tests.helpers.architectures import build, random_architecture


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("words", [1, 3, 256])
@pytest.mark.parametrize("metric", ["kl_div", "mse"])
@pytest.mark.parametrize("work_bytes", [1, 2**30])
@torch.inference_mode()
def test_losses_are_those_of_the_metric(
    seed: int, words: int, metric: str, work_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "LEAST_WORDS", words)
    architecture = replace(random_architecture(seed, max_edges=120), d_vocab=11)
    model, loader = build(architecture)
    model.cfg.output_logits_soft_cap = 5.0 if seed % 2 else -1.0
    batch = next(iter(loader))
    positions, drops = output_positions(model, batch.clean.shape[1])
    generator = torch.Generator().manual_seed(seed)
    size = (5, len(batch.clean), len(positions), model.cfg.d_model)
    final = torch.randn(size, generator=generator, dtype=model.cfg.dtype)
    logits = unembed(model, final)
    logits = logits[:, :, 0] if drops else logits
    wanted = row_losses(metric, METRICS[metric], logits[1:], logits[0], batch)
    read = Readout(model, batch, final[0], (metric, METRICS[metric]), work_bytes)
    assert read.clean_loss == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(read.losses(final[1:]), wanted, rtol=1e-5, atol=1e-7)


@torch.inference_mode()
def test_a_loss_that_is_not_finite_is_refused() -> None:
    model, loader = build(random_architecture(1, max_edges=120))
    batch = next(iter(loader))
    positions, _ = output_positions(model, batch.clean.shape[1])
    final = torch.zeros(1, len(batch.clean), len(positions), model.cfg.d_model, dtype=model.cfg.dtype)
    read = Readout(model, batch, final[0], ("kl_div", METRICS["kl_div"]), 2**20)
    with pytest.raises(MetricError, match="kl_div"):
        read.losses(final + torch.nan)


def readout_of(seed: int, metric: str) -> tuple[Readout, torch.Tensor]:
    """The readout of a model in FP64, and other final residual streams than the clean ones."""
    drawn = replace(random_architecture(seed, max_edges=120), d_vocab=5, dtype=torch.float64)
    model, loader = build(drawn)
    batch = next(iter(loader))
    positions, _ = output_positions(model, batch.clean.shape[1])
    generator = torch.Generator().manual_seed(seed)
    size = (2, len(batch.clean), len(positions), model.cfg.d_model)
    final = torch.randn(size, generator=generator, dtype=model.cfg.dtype)
    return Readout(model, batch, final[0], (metric, METRICS[metric]), 2**20), final


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ["kl_div", "mse", "logit_diff"])
def test_gradients_are_those_of_the_losses(seed: int, metric: str) -> None:
    read, final = readout_of(seed, metric)
    points = torch.stack([final[1], final[0] + 0.1 * final[1]])
    found, step = read.derivatives(points), 1e-6
    direction = torch.randn_like(points)
    change = read.losses(points + step * direction) - read.losses(points - step * direction)
    wanted = (found * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(change / (2 * step), wanted, rtol=1e-5, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("metric", ["kl_div", "mse"])
def test_probes_have_the_curvature_of_the_loss_at_the_clean_output(metric: str) -> None:
    """There the Gauss-Newton matrix is the whole second derivative with respect to the logits, and the
    loss and its slope are 0. One probe for each direction of the logits gives that matrix exactly."""
    read, final = readout_of(2, metric)
    like = read.normals(1, torch.Generator())[0]
    normals = torch.eye(like.numel(), dtype=torch.float64).view(-1, *like.shape)
    probes = read.derivatives(final[:1], normals)[1:]
    step = 1e-3
    for direction in (final[1], torch.randn_like(final[1])):
        wanted = read.losses((final[0] + step * direction)[None]) * 2 / step**2
        found = (probes * direction).flatten(1).sum(dim=1).square().sum()
        assert float(found) == pytest.approx(float(wanted), rel=0.02)
    assert read.curved and not readout_of(2, "logit_diff")[0].curved
