"""Gradient attribution of every edge of the full graph, without a forward of the host.

The score of an edge is the inner product, over prompts, positions and d_model, of its source's
(ablated - clean) output and the gradient of the mean loss at its destination's input. At each point
where the gradient is taken:

1. Run the model once, leaving tapes (see `tapes`).
2. Take the loss's gradient back through the units, one running tensor for the residual stream.
3. For each destination module, one matrix product of its gradients and all sources' differences gives
   the scores of all edges into it.

Differences are formed once for all points, d_model wide, for as many prompts at a time as fit in
`PART_BYTES`. A loss is a mean over prompts, so that this changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pahq_plugin.engines.incremental.budget import budget_for
from pahq_plugin.engines.incremental.readout import Readout
from pahq_plugin.engines.incremental.source_outputs import Sources, ablated_runs
from pahq_plugin.engines.incremental.tapes import Place, Tape, back, run, units_of
from pahq_plugin.engines.question import Question
from pahq_plugin.host import AblationType, PatchableModel, PromptPairBatch, PruneScores
from pahq_plugin.host.graph import block, kind, slot
from pahq_plugin.metrics import differentiated, logit_diff
from pahq_plugin.models.blocks import embed, output_positions
from pahq_plugin.system.processes import World
from pahq_plugin.system.progress import progress_bar
from pahq_plugin.system.warn import warn

PART_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""By kind of device: about how many bytes the prompts that are attributed together take."""

HELD_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""By kind of device: about how many bytes of gradients are multiplied with the differences at once."""

FLAT = 1e-5
"""A metric is called flat at the clean state if its first-order change, were all sources ablated, is
below this share of its true change."""

Points = Literal["clean", "inputs", "outputs"]
"""Where gradients are taken: at the clean state; where the embedding lies between ablated and clean; or
where the outputs of one unit do, for each unit in turn."""

Score = Callable[[], object]


@torch.no_grad()
def attribute(question: Question, points: Points, steps: int) -> PruneScores:
    """Score all edges.

    Args:
        question: a model that `pahq_plugin.models.blocks.unsupported` has no objection to, its prompts,
            ablation and metric.
        points: where gradients are taken.
        steps: m; clean shares are k / m, k = 1..m. Not used with ``"clean"``.

    Returns:
        Host prune scores, the mean over batches and points.

    Raises:
        MetricError: the metric is not finite or cannot be differentiated.
    """
    prompts, scores = question.prompts, question.model.new_prune_scores()
    each = [parts_of(question.model, batch) for batch in prompts]
    counts = {"clean": 1, "inputs": steps, "outputs": steps * (1 + _n_units(question.model)) + 1}
    flat = (points == "clean" or steps == 1) and question.metric[1] is not logit_diff
    done = 0
    with progress_bar("gradients", sum(map(len, each)) * counts[points], question.progress) as bar:
        for whole, parts, constant in zip(prompts, each, _constants(question), strict=True):
            for part in parts:
                share = len(part.clean) / len(whole.clean) / len(prompts)
                attribution = Attribution(question, part, _ablated(question, part, constant), scores)
                for score in attribution.at(points, steps, share):
                    score()
                    done += 1
                    bar(done)
                attribution.finish()
                flat = flat and attribution.is_flat
    if flat:
        warn(
            f"metric {question.metric[0]!r} hardly changes near the clean state, where these scores are "
            "taken; use eap-ig with several steps, or another metric"
        )
    return scores


class Attribution:
    """Scores of all edges on some prompts of one batch.

    Args:
        question: the model and the metric.
        batch: the prompts.
        ablated: what patched edges carry for them.
        scores: host prune scores, added to.
    """

    def __init__(
        self, question: Question, batch: PromptPairBatch, ablated: Sources, scores: PruneScores
    ) -> None:
        model = self._model = question.model
        self._kind = _kind(batch.clean)
        self._metric, self._ablated, self._scores = question.metric[0], ablated, scores
        self._embedding, padding = embed(model, batch.clean)
        self._units = units_of(model, self._embedding, padding)
        self._tapes, self._final = run(self._units, self._embedding)
        self._positions = output_positions(model, batch.clean.shape[1])[0]
        final, work_bytes = self._final[:, self._positions], budget_for(batch.clean.device).work
        self._readout = Readout(model, batch, final, question.metric, work_bytes)
        self._modules = _modules(model)
        self._held: list[tuple[Place, Tensor]] = []
        self._differences = self._formed()

    # Points ----------------------------------------------------------------------------------------

    def at(self, points: Points, steps: int, share: float) -> Iterator[Score]:
        """Yield functions that score at one point each and weight it; all weights together are
        ``share``."""
        if points == "outputs":
            yield from self._between_outputs(steps, share)
            return
        if points == "inputs":
            for k in range(1, steps):
                yield partial(self._at_input, k / steps, share / steps)
            share /= steps
        yield partial(self._back, 0, self._tapes, self._final, share)

    def _between_outputs(self, steps: int, share: float) -> Iterator[Score]:
        """Yield functions that score at each point between outputs.

        In front of the unit in question all activations are clean. Gradients there are summed over
        points, and taken further back once, in the last step.
        """
        fractions = [k / steps for k in range(1, steps + 1)]
        share /= steps * (1 + len(self._units))
        in_front = [torch.zeros_like(self._embedding) for _ in self._units]
        for i in reversed(range(len(self._units))):
            yield from (partial(self._at_output, i, clean, share, in_front[i]) for clean in fractions)
        yield from (partial(self._at_input, clean, share) for clean in fractions)
        start = torch.zeros_like(self._embedding)
        yield partial(back, self._units, self._tapes, start, self._note, in_front)

    def _at_input(self, clean: float, share: float) -> None:
        ablated = self._ablated.embedding
        self._back(0, *run(self._units, ablated + clean * (self._embedding - ablated)), share)

    def _at_output(self, i: int, clean: float, share: float, in_front: Tensor) -> None:
        """Score edges into destinations behind unit ``i``; add the gradient that bypasses the unit to
        ``in_front``."""
        unit, stream = self._units[i], self._stream(i)
        own, ablated = self._tapes[i].factor, self._ablated_factor(i)
        output = unit.output(ablated + clean * (own - ablated))
        tapes, final = run(self._units[i + 1 :], stream + output, stream)
        in_front += self._back(i + 1, tapes, final, share)

    def _stream(self, i: int) -> Tensor:
        """Return the clean residual stream in front of unit ``i``."""
        return sum((tape.output for tape in self._tapes[:i]), self._embedding)

    # From the loss to scores -----------------------------------------------------------------------

    def _back(self, first: int, tapes: Sequence[Tape], final: Tensor, share: float) -> Tensor:
        """Score the edges into the units from ``first`` on and the output; return the gradient in front
        of them."""
        gradient = share * self._gradient(final)
        self._note(Place("output"), gradient[None])
        return back(self._units[first:], tapes, gradient, self._note)

    def _gradient(self, final: Tensor) -> Tensor:
        """Compute the gradient of the mean loss at a last residual stream, ``[batch, pos, d_model]``."""
        with differentiated(self._metric):
            found = self._readout.derivatives(final[None, :, self._positions])[0]
        gradient = torch.zeros_like(final)
        gradient[:, self._positions] = found
        return gradient

    def _note(self, place: Place, gradient: Tensor) -> None:
        """Hold the gradients at the inputs of some destinations, ``[dest, batch, pos, d_model]``, until
        there are enough for an efficient product."""
        self._held.append((place, _by_position(self._model, gradient)))
        if sum(rows.nbytes for _, rows in self._held) >= HELD_BYTES[self._kind]:
            self.finish()

    def finish(self) -> None:
        """Add the scores of all edges into the destinations whose gradients are held."""
        if not self._held:
            return
        places, gradients = zip(*self._held, strict=True)
        scores = [self._scores[self._modules[place]] for place in places]
        most = max(into.shape[-1] for into in scores)  # sources that any of them reads
        read = self._differences[:, :most]
        products = read @ torch.cat(gradients, dim=1).mT  # [pos or 1, source, dest]
        sizes = [rows.shape[1] for rows in gradients]
        for into, own in zip(scores, products.split(sizes, dim=-1), strict=True):
            into += own[:, : into.shape[-1]].mT.reshape(into.shape)
        self._held = []

    # Sources ---------------------------------------------------------------------------------------

    def _formed(self) -> Tensor:
        """Compute (ablated - clean) of all sources as `_by_position` lays them out."""
        rows = [(self._ablated.embedding - self._embedding)[None]]
        for i, (unit, tape) in enumerate(zip(self._units, self._tapes, strict=True)):
            rows.append(unit.outputs(self._ablated_factor(i) - tape.factor))
        return torch.cat([_by_position(self._model, row) for row in rows], dim=1)

    def _ablated_factor(self, i: int) -> Tensor:
        """Return what the sources of unit ``i`` put out when ablated, as in `Tape.factor`."""
        unit = self._units[i]
        held = self._ablated.z if unit.opens_block else self._ablated.mlp
        return held[unit.layer]

    @property
    def is_flat(self) -> bool:
        """Whether the metric has no gradient at the clean state, though ablation changes it."""
        outputs = (unit.output(self._ablated_factor(i)) for i, unit in enumerate(self._units))
        final: Tensor = sum(outputs, self._ablated.embedding)  # type: ignore[assignment]
        slopes = (self._gradient(self._final) * (final - self._final)).sum(dim=-1)
        change = float(self._readout.losses(final[None, :, self._positions])) - self._readout.clean_loss
        return float(slopes.abs().sum()) < FLAT * abs(change)


def parts_of(model: PatchableModel, batch: PromptPairBatch) -> list[PromptPairBatch]:
    """Divide a batch into parts that take about `PART_BYTES` each; a model with KV caches, which are of
    whole batches, takes it whole."""
    if model.kv_caches is not None:
        return [batch]
    prompts, length = batch.clean.shape
    count = -(-prompts * prompt_bytes(model, length) // PART_BYTES[_kind(batch.clean)])
    count = min(prompts, count)
    return [World(i, count).share_of(batch) for i in range(count)]


def prompt_bytes(model: PatchableModel, length: int) -> int:
    """Estimate the bytes that one prompt of ``length`` tokens takes: differences and gradients, tapes of
    the clean run and of a point, logits in FP64."""
    cfg: Any = model.cfg
    hidden = 0 if cfg.attn_only else 4 * cfg.d_mlp
    heads = cfg.n_heads * (8 * cfg.d_head + 4 * length)
    wide = (len(model.srcs) + 4 * cfg.n_heads) * cfg.d_model
    tapes = 2 * cfg.n_layers * (heads + hidden + 4 * cfg.d_model)
    outputs = len(output_positions(model, length)[0])
    return length * (wide + tapes) * cfg.dtype.itemsize + 4 * 8 * outputs * cfg.d_vocab_out


def _constants(question: Question) -> Iterator[Sources | None]:
    """Yield, for each batch, what patched edges carry for every prompt of it alike; ``None`` if that
    depends on the prompt."""
    model, ablation, prompts = question.model, question.ablation, question.prompts
    runs = partial(ablated_runs, model, question.loader, ablation=ablation, dtype=model.cfg.dtype)
    if ablation is AblationType.RESAMPLE:
        yield from (None for _ in prompts)
    elif ablation.mean_over_dataset:
        yield from runs(prompts)
    else:
        yield from (runs([batch])[0] for batch in prompts)


def _ablated(question: Question, part: PromptPairBatch, constant: Sources | None) -> Sources:
    """Return what patched edges carry for some prompts of a batch."""
    model = question.model
    if constant is None:
        return ablated_runs(model, question.loader, [part], question.ablation, model.cfg.dtype)[0]
    return constant.map(lambda x, batch_axis: x.narrow(batch_axis, 0, len(part.clean)))


def _modules(model: PatchableModel) -> dict[Place, str]:
    """Return the host's name of each destination module."""
    found: dict[Place, str] = {}
    for node in model.dests:
        which = kind(node)
        place = Place("output")
        if which != "output":
            place = Place(which, block(node), slot(node) if which == "head" else "")  # type: ignore[arg-type]
        found[place] = node.module_name
    return found


def _kind(tensor: Tensor) -> str:
    """Return the kind of a tensor's device, as in `PART_BYTES`."""
    return tensor.device.type if tensor.device.type in PART_BYTES else "cpu"


def _n_units(model: PatchableModel) -> int:
    return model.cfg.n_layers * (1 if model.cfg.attn_only else 2)


def _by_position(model: PatchableModel, x: Tensor) -> Tensor:
    """Lay out ``[node, batch, pos, d_model]`` as ``[1, node, batch * pos * d_model]``, or, if the graph
    has edges for each position, as ``[pos, node, batch * d_model]``."""
    if model.seq_len is None:
        return x.flatten(1)[None]
    return x.permute(2, 0, 1, 3).flatten(2)
