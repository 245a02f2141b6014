"""``engine="onnx"``: the sweep with its effects measured in ONNX Runtime.

The model is exported once, as a dense graph, into a temporary folder. Row 0 of a call is the present
state, row i has the first i candidates removed; all of them lead into one destination, whose head is in
FP32. Where weights are low these effects are screened ones, and another engine decides in FP32 what the
guard band doubts; an FP32 graph needs none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from pahq_exporters.graph.write import export_if, require
from pahq_exporters.runtime.patcher import OnnxPatcher, Prompts
from pahq_exporters.session import PROVIDERS
from pahq_plugin.engines.protocol import Engine
from pahq_plugin.engines.question import Question
from pahq_plugin.errors import ConfigError, ExportError, MetricError
from pahq_plugin.host import Edge
from pahq_plugin.host.patching import CleanRun, ablated_sources, clean_runs
from pahq_plugin.labels import edge_label
from pahq_plugin.metrics import row_losses
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.system.warn import warn

LOOKAHEAD = 15
"""Candidates of one call, beside the present state."""


class OnnxEngine:
    """Measures effects on an exported graph.

    Args:
        question: of a borrowed model.
        precision: of the exported graph.
        exact: decides in FP32; ``None`` if the graph is FP32 itself.

    Raises:
        ExportError: a model or prompts that no graph can hold, or the extra is not installed.
    """

    name = "onnx"

    def __init__(self, question: Question, precision: PrecisionConfig, exact: Engine | None) -> None:
        require("onnxruntime")
        dtype = question.model.cfg.dtype
        if exact is None and dtype in (torch.bfloat16, torch.float16):
            raise ExportError(
                f"weights are in {dtype}, but graphs compute in FP32, so decisions would not be the "
                "model's own; use engine='host', or call model.wrapped_model.to(torch.float32) first"
            )
        self._evaluations = 0
        self._model, self._metric, self._exact = question.model, question.metric, exact
        self._runs = clean_runs(question.model, question.prompts)
        for run in self._runs:
            _check_padding(run)
        self._folder = tempfile.TemporaryDirectory(prefix="pahq-onnx-")
        self.lookahead = LOOKAHEAD if exact is None else min(LOOKAHEAD, exact.lookahead)
        try:
            self._load(question, precision)
            self.loss = self._losses(self._mask[None], None)[0] if exact is None else exact.loss
        except BaseException:
            self.close()
            raise

    def _load(self, question: Question, precision: PrecisionConfig) -> None:
        path = Path(self._folder.name) / "graph.onnx"
        export_if(None, question.model, path, graph="dense", precision=precision, positions="model")
        device = question.prompts[0].clean.device
        providers = ["cuda"] if device.type == "cuda" and _has_cuda() else None
        if device.type == "cuda" and providers is None:
            warn(
                "engine='onnx' runs on the CPU: ONNX Runtime has no CUDA here (install onnxruntime-gpu)"
            )
        self._patcher = OnnxPatcher(path, providers=providers, threads=torch.get_num_threads())
        ablated = ablated_sources(question.model, question.loader, question.prompts, question.ablation)
        self._prompts: list[Prompts] = []
        with torch.inference_mode():
            for run, sources in zip(self._runs, ablated, strict=True):
                shape = (sources.shape[0], *run.batch.clean.shape, sources.shape[-1])
                corrupt = sources.float().expand(shape).cpu().numpy()
                self._prompts.append(self._patcher.prompts(run.batch.clean.cpu().numpy(), corrupt))
        self._mask = self._patcher.mask(())
        self._index = {edge: self._patcher.description.index_of(edge) for edge in question.model.edges}

    def close(self) -> None:
        """Delete the exported graph."""
        self._folder.cleanup()

    @property
    def evaluations(self) -> int:
        """Rows of all calls, and what the exact engine ran."""
        return self._evaluations + (0 if self._exact is None else self._exact.evaluations)

    @property
    def present_loss(self) -> float | None:
        """The exact engine's."""
        return None if self._exact is None else self._exact.present_loss

    @property
    def screens(self) -> bool:
        """Whether the graph is in few bits."""
        return self._exact is not None

    def screen_with(self, precision: PrecisionConfig) -> None:
        """
        Raises:
            ConfigError: a graph has the formats it was exported with.
        """
        raise ConfigError(
            "policy='hybrid' chooses formats as it goes, which an exported graph cannot change; search "
            "with engine='incremental' and pass the formats of that result"
        )

    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """See `Engine.effects`; answers the first candidates that lead into one destination."""
        if exact and self._exact is not None:
            return self._exact.effects(candidates, predicted_kept, exact=True)
        dest = candidates[0].dest
        group = list(takewhile(lambda edge: edge.dest == dest, candidates))
        masks = [self._mask]
        state = self._mask
        for edge, kept in zip(group, predicted_kept, strict=False):
            without = state.copy()
            without[self._index[edge]] = 1
            masks.append(without)
            state = state if kept else without
        head = None if dest.head_idx is None else self._patcher.head_of(group[0])
        try:
            losses = self._losses(np.stack(masks), head)
        except MetricError as error:
            if len(group) == 1:
                raise MetricError(f"at edge {edge_label(group[0])}: {error}") from error
            return self.effects(group[:1], predicted_kept[:1], exact=exact)
        effects, before = [], losses[0]
        for after, kept in zip(losses[1:], predicted_kept, strict=False):
            effects.append(after - before)
            before = before if kept else after
        return effects

    def settle(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], wanted: Sequence[bool]
    ) -> list[float]:
        """See `Engine.settle`; the exact engine does that."""
        assert self._exact is not None  # it screens
        return self._exact.settle(candidates, predicted_kept, wanted)

    def remove(self, edges: Sequence[Edge]) -> None:
        """See `Engine.remove`."""
        self._mask = self._mask.copy()
        for edge in edges:
            self._mask[self._index[edge]] = 1
        if self._exact is not None and edges:
            self._exact.remove(edges)

    def catch_up(self) -> None:
        """See `Engine.catch_up`."""
        if self._exact is not None:
            self._exact.catch_up()

    def restore(self, removed: Sequence[Edge]) -> None:
        """See `Engine.restore`."""
        self._mask = self._patcher.mask(removed)
        if self._exact is not None:
            self._exact.restore(removed)

    def _losses(self, masks: np.ndarray[Any, Any], head: tuple[int, int] | None) -> list[float]:
        """Loss under each mask ``[candidate, dest, src]``, averaged over the batches."""
        self._evaluations += len(masks)
        by_batch = [
            self._batch_losses(run, prompts, masks, head)
            for run, prompts in zip(self._runs, self._prompts, strict=True)
        ]
        return [fmean(losses) for losses in zip(*by_batch, strict=True)]

    def _batch_losses(
        self,
        run: CleanRun,
        prompts: Prompts,
        masks: np.ndarray[Any, Any],
        head: tuple[int, int] | None,
    ) -> list[float]:
        logits = torch.from_numpy(self._patcher.run(prompts, mask=masks, head=head))
        logits = logits.to(run.logits.device)
        name, metric = self._metric
        return row_losses(name, metric, logits, run.logits, run.batch).tolist()


def _check_padding(run: CleanRun) -> None:
    """
    Raises:
        ExportError: a prompt is padded, for which graphs have no mask.
    """
    padding = run.start_arguments.get("attention_mask")
    if padding is not None and not bool(padding.all()):
        raise ExportError(
            "prompts are padded, but graphs have no padding mask; use prompts of one length"
        )


def _has_cuda() -> bool:
    import onnxruntime

    return PROVIDERS["cuda"] in onnxruntime.get_available_providers()


class Factory:
    """What the entry point ``pahq.engines`` names; see `pahq_plugin.engines.protocol.EngineFactory`."""

    def default_precision(self, device: torch.device) -> PrecisionConfig:
        """int8 weights: E4M3's noise, ten times as large, would leave most edges to the exact engine."""
        return PrecisionConfig(low="int8", mlp="int8", activations="high")

    def __call__(
        self, question: Question, precision: PrecisionConfig, exact: Callable[[], Engine]
    ) -> OnnxEngine:
        """The engine for a question."""
        return OnnxEngine(question, precision, None if precision.is_exact else exact())


factory = Factory()
