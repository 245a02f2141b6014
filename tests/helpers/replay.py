"""The replay oracle: every decision of a search, taken again on the host alone.

Nothing here is clever. A state of the search is the host's patch masks; its loss is one full
forward from the tokens under the host's `patch_mode`; an effect is the difference of two losses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from auto_circuit.data import PromptDataLoader, PromptPairBatch
from auto_circuit.types import AblationType, Edge
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, set_all_masks
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor

Metric = str | Callable[[Tensor, Tensor, PromptPairBatch], Tensor]
"""A loss by name, or ``metric(logits, clean_logits, batch) -> [prompt]``; larger is worse."""

ABSOLUTE_TOLERANCE = 1e-6  # times max(1, |loss|)
RELATIVE_TOLERANCE = 1e-4


class Taken(Protocol):
    """What the oracle reads of a decision."""

    @property
    def edge(self) -> Edge: ...
    @property
    def effect(self) -> float: ...
    @property
    def kept(self) -> bool: ...


@dataclass(frozen=True)
class Decision:
    """An edge, the change of the loss when it is patched, and whether it stays."""

    edge: Edge
    effect: float
    kept: bool


@dataclass(frozen=True)
class Disagreement:
    """A decision that the oracle takes the other way."""

    index: int  # among the decisions
    edge: Edge
    kept: bool  # as decided
    reported: float  # effect, as decided
    effect: float  # effect, as measured
    loss: float  # of the state before

    def __str__(self) -> str:
        verb = "kept" if self.kept else "removed"
        position = "" if self.edge.seq_idx is None else f" at position {self.edge.seq_idx}"
        return (
            f"#{self.index} {self.edge.name}{position} was {verb}: effect reported "
            f"{self.reported:.9g}, true {self.effect:.9g}, loss before {self.loss:.9g}"
        )


@dataclass(frozen=True)
class ReplayReport:
    """What came of a replay."""

    threshold: float
    n_edges: int  # of the model
    n_decisions: int
    n_kept: int
    n_checked: int
    n_ties: int  # checked, and too close to the threshold to say
    disagreements: tuple[Disagreement, ...]
    worst_absolute: float  # largest |reported - true| of the checked
    worst_relative: float  # largest |reported - true| / |true| of those outside ABSOLUTE_TOLERANCE

    @property
    def share_kept(self) -> float:
        """Kept edges among all edges of the model."""
        return self.n_kept / self.n_edges

    @property
    def agrees(self) -> bool:
        """Whether every edge was decided and every checked decision is right."""
        return self.n_checked > 0 and self.n_decisions == self.n_edges and not self.disagreements

    def __str__(self) -> str:
        lines = [
            f"threshold {self.threshold:.6g}: {self.n_decisions} of {self.n_edges} edges decided, "
            f"{self.n_kept} kept ({self.share_kept:.1%}), {self.n_checked} checked, "
            f"{self.n_ties} ties, {len(self.disagreements)} wrong; effects off by at most "
            f"{self.worst_absolute:.3g} ({self.worst_relative:.3g} relative)"
        ]
        return "\n  ".join([*lines, *map(str, self.disagreements)])


class LossOracle:
    """Losses of a host model under its present masks, each by full forwards from the tokens.

    Clean logits and ablated source outputs are taken once, without any patch; resample and the
    means of a batch come from its corrupt prompts, means of the data set from the whole loader.
    """

    def __init__(
        self,
        model: PatchableModel,
        loader: PromptDataLoader,
        metric: Metric = "kl_div",
        ablation: AblationType = AblationType.RESAMPLE,
        batches: int | None = 1,
    ) -> None:
        self.model = model
        self.metric = METRICS[metric] if isinstance(metric, str) else metric
        self.cases: list[tuple[PromptPairBatch, Tensor, Tensor]] = []
        for batch in islice(loader, batches):
            sample = loader if ablation.mean_over_dataset else batch.corrupt
            ablated = src_ablations(model, sample, ablation)  # source batch pos d_model
            self.cases.append((batch, self._logits(batch), ablated))
        if not self.cases:
            raise ValueError("the loader yields no batch")

    def loss(self) -> float:
        """The loss under the present masks: mean over batches of the mean over prompts."""
        losses = []
        for batch, clean_logits, ablated in self.cases:
            with patch_mode(self.model, ablated):
                logits = self._logits(batch)
            losses.append(self.metric(logits, clean_logits, batch).mean().item())
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        return loss

    def _logits(self, batch: PromptPairBatch) -> Tensor:
        """Output of the model that counts, in float64: batch [pos] d_vocab."""
        with torch.inference_mode():
            return self.model(batch.clean)[self.model.out_slice].double()


def kl_div(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """KL(clean || patched), mean over positions: batch."""
    log_p = clean_logits.log_softmax(dim=-1)
    log_q = logits.log_softmax(dim=-1)
    return _per_prompt((log_p.exp() * (log_p - log_q)).sum(dim=-1))


def mse(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Squared difference of the logits, mean over positions and vocabulary: batch."""
    return _per_prompt((logits - clean_logits).square().mean(dim=-1))


def logit_diff(logits: Tensor, clean_logits: Tensor, batch: PromptPairBatch) -> Tensor:
    """Minus (mean logit of the answers - mean logit of the wrong answers): batch."""
    rows = zip(logits, batch.answers, batch.wrong_answers, strict=True)
    differences = [
        row[..., wrong].mean(dim=-1) - row[..., right].mean(dim=-1) for row, right, wrong in rows
    ]
    return _per_prompt(torch.stack(differences))


METRICS = {"kl_div": kl_div, "mse": mse, "logit_diff": logit_diff}


def canonical_order(model: PatchableModel) -> list[Edge]:
    """All edges, destinations from the output back.

    By the destination's layer descending, MLP before heads, head index, then Q, K, V; then
    position descending, then source index ascending.
    """

    def key(edge: Edge) -> tuple[int, bool, int, int, int, int]:
        dest = edge.dest
        head = -1 if dest.head_idx is None else dest.head_idx
        letter = max("QKV".find(dest.name[-1]), 0)
        position = 0 if edge.seq_idx is None else edge.seq_idx
        return -dest.layer, head >= 0, head, letter, -position, edge.src.src_idx

    return sorted(model.edges, key=key)


def replay(
    model: PatchableModel,
    loader: PromptDataLoader,
    decisions: Sequence[Taken],
    *,
    threshold: float,
    metric: Metric = "kl_div",
    ablation: AblationType = AblationType.RESAMPLE,
    batches: int | None = 1,
    sample: float | None = 0.1,
    seed: int = 0,
) -> ReplayReport:
    """Walk decisions in order on a fresh model and check them.

    Checked are all kept edges, all whose reported effect lies within a factor of two of the
    threshold, and a seeded share `sample` of the others (None: all). A removed edge stays patched
    for the rest of the walk.
    """
    _refuse_impossible(model, decisions)
    oracle = LossOracle(model, loader, metric, ablation, batches)
    checked = _indices_to_check(decisions, threshold, sample, seed)
    measured: list[tuple[int, float, float]] = []  # index, true effect, loss before
    before: float | None = None  # None: not known since the masks changed
    with cleared_masks(model):
        for index, decision in enumerate(decisions):
            after = None
            if index in checked:
                before = oracle.loss() if before is None else before
                _set_mask(model, decision.edge, 1.0)
                after = oracle.loss()
                measured.append((index, after - before, before))
            _set_mask(model, decision.edge, 0.0 if decision.kept else 1.0)
            before = before if decision.kept else after
    return _report(model, decisions, threshold, measured)


def sequential_acdc(
    model: PatchableModel,
    loader: PromptDataLoader,
    order: Iterable[Edge] | None = None,
    *,
    threshold: float,
    metric: Metric = "kl_div",
    ablation: AblationType = AblationType.RESAMPLE,
    batches: int | None = 1,
) -> list[Decision]:
    """ACDC as it is told: one forward for each edge, in `order` (None: the canonical one)."""
    oracle = LossOracle(model, loader, metric, ablation, batches)
    decisions = []
    with cleared_masks(model):
        before = oracle.loss()
        for edge in canonical_order(model) if order is None else order:
            _set_mask(model, edge, 1.0)
            after = oracle.loss()
            kept = after - before >= threshold
            decisions.append(Decision(edge, after - before, kept))
            if kept:
                _set_mask(model, edge, 0.0)
            else:
                before = after
    return decisions


def single_effects(
    model: PatchableModel,
    loader: PromptDataLoader,
    edges: Iterable[Edge],
    *,
    metric: Metric = "kl_div",
    ablation: AblationType = AblationType.RESAMPLE,
    batches: int | None = 1,
) -> list[float]:
    """The effect of each edge when it alone is patched."""
    oracle = LossOracle(model, loader, metric, ablation, batches)
    effects = []
    with cleared_masks(model):
        clean = oracle.loss()
        for edge in edges:
            _set_mask(model, edge, 1.0)
            effects.append(oracle.loss() - clean)
            _set_mask(model, edge, 0.0)
    return effects


def threshold_for_share(
    model: PatchableModel,
    loader: PromptDataLoader,
    *,
    share: tuple[float, float] = (0.02, 0.6),
    metric: Metric = "kl_div",
    ablation: AblationType = AblationType.RESAMPLE,
    batches: int | None = 1,
    seed: int = 0,
    max_runs: int = 12,
) -> tuple[float, list[Decision]]:
    """A threshold at which `sequential_acdc` keeps a share of the edges, and what it decides.

    The first guess is a quantile of single-edge effects on a seeded sample; from there its logarithm
    is bisected. Thresholds near the rounding of FP32 losses prove nothing and are not offered:
    ValueError if none above keeps a right share.
    """
    order = canonical_order(model)
    few = random.Random(seed).sample(order, min(len(order), 64))
    # A sample of all, and every edge into the output, where a circuit has to end.
    edges = [*few, *(edge for edge in order if edge.dest == order[0].dest)]
    effects = single_effects(model, loader, edges, metric=metric, ablation=ablation, batches=batches)
    floor = 10 * ABSOLUTE_TOLERANCE
    positive = [effect for effect in effects if effect > floor]
    ranked = sorted([floor, *positive, 2 * max(positive, default=floor)], reverse=True)
    low, high = ranked[-1], ranked[0]
    quarter = (len(positive) + 3) // 4
    # Between two effects, not on one: the first decision's is among them.
    threshold = math.sqrt(ranked[quarter] * ranked[quarter + 1])
    for _ in range(max_runs):
        decisions = sequential_acdc(
            model,
            loader,
            order,
            threshold=threshold,
            metric=metric,
            ablation=ablation,
            batches=batches,
        )
        kept = sum(decision.kept for decision in decisions) / len(order)
        if share[0] <= kept <= share[1] and kept > 0:
            return threshold, decisions
        low, high = (threshold, high) if kept > share[1] else (low, threshold)
        threshold = math.sqrt(low * high)
    raise ValueError(f"no threshold above {floor} keeps {share[0]:.0%} to {share[1]:.0%} of edges")


@contextmanager
def cleared_masks(model: PatchableModel) -> Iterator[None]:
    """All patch masks zero inside; as they were outside."""
    saved = {name: mask.detach().clone() for name, mask in model.patch_masks.items()}
    set_all_masks(model, 0.0)
    try:
        yield
    finally:
        for name, mask in model.patch_masks.items():
            mask.data.copy_(saved[name])


def _per_prompt(values: Tensor) -> Tensor:
    """Mean over positions, where there are any: batch [pos] -> batch."""
    return values.flatten(start_dim=1).mean(dim=1) if values.ndim > 1 else values


def _set_mask(model: PatchableModel, edge: Edge, value: float) -> None:
    edge.patch_mask(model).data[edge.patch_idx] = value


def _refuse_impossible(model: PatchableModel, decisions: Sequence[Taken]) -> None:
    """An edge decided twice or unknown to the model is no decision to check."""
    edges = [decision.edge for decision in decisions]
    if len(set(edges)) != len(edges):
        raise ValueError("an edge was decided more than once")
    if unknown := set(edges) - set(model.edges):
        raise ValueError(f"{len(unknown)} decided edges are not in the model: {min(unknown, key=str)}")


def _indices_to_check(
    decisions: Sequence[Taken], threshold: float, sample: float | None, seed: int
) -> set[int]:
    if sample is None:
        return set(range(len(decisions)))
    certain = {
        index
        for index, decision in enumerate(decisions)
        if decision.kept or threshold / 2 <= decision.effect <= 2 * threshold
    }
    rest = [index for index in range(len(decisions)) if index not in certain]
    return certain | set(random.Random(seed).sample(rest, math.ceil(sample * len(rest))))


def _report(
    model: PatchableModel,
    decisions: Sequence[Taken],
    threshold: float,
    measured: Sequence[tuple[int, float, float]],
) -> ReplayReport:
    wrong, n_ties, worst_absolute, worst_relative = [], 0, 0.0, 0.0
    for index, effect, loss in measured:
        decision = decisions[index]
        margin = ABSOLUTE_TOLERANCE * max(1.0, abs(loss))
        if abs(effect - threshold) < max(RELATIVE_TOLERANCE * abs(threshold), margin):
            n_ties += 1
        elif (effect >= threshold) != decision.kept:
            wrong.append(
                Disagreement(index, decision.edge, decision.kept, decision.effect, effect, loss)
            )
        error = abs(decision.effect - effect)
        worst_absolute = max(worst_absolute, error)
        if error > margin:
            worst_relative = max(worst_relative, error / abs(effect) if effect else math.inf)
    return ReplayReport(
        threshold=threshold,
        n_edges=len(model.edges),
        n_decisions=len(decisions),
        n_kept=sum(decision.kept for decision in decisions),
        n_checked=len(measured),
        n_ties=n_ties,
        disagreements=tuple(wrong),
        worst_absolute=worst_absolute,
        worst_relative=worst_relative,
    )
