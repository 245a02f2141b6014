"""``engine="onnx"``: a search that measures effects in ONNX Runtime.

The model is exported once, as a dense graph, into a temporary folder. Row 0 of a call is the present
state; row i has the first i candidates removed. All candidates of a call lead into one destination,
whose head is in FP32. With low-precision weights the effects are screened, and another engine decides
edges within the guard band in FP32. An FP32 graph needs no other engine.
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
"""Most candidates of one call, beside the present state."""


class OnnxEngine:
    """Measures effects on an exported graph.

    Args:
        question: what to search, with a borrowed model.
        precision: precision of the exported graph.
        exact: engine that decides in FP32; ``None`` if the graph itself is FP32.

    Raises:
        ExportError: a graph cannot represent the model or the prompts, or the extra is not installed.
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
        import onnxruntime

        path = Path(self._folder.name) / "graph.onnx"
        export_if(None, question.model, path, graph="dense", precision=precision, positions="model")
        providers = None
        if question.prompts[0].clean.device.type == "cuda":
            if PROVIDERS["cuda"] in onnxruntime.get_available_providers():
                providers = ["cuda"]
            else:
                warn(
                    "engine='onnx' runs on the CPU: ONNX Runtime has no CUDA here (install "
                    "onnxruntime-gpu)"
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
        """Rows of all calls plus the evaluations of the exact engine."""
        return self._evaluations + (0 if self._exact is None else self._exact.evaluations)

    @property
    def present_loss(self) -> float | None:
        """The exact engine's `present_loss`; ``None`` if there is no exact engine."""
        return None if self._exact is None else self._exact.present_loss

    @property
    def screens(self) -> bool:
        """Whether the graph has low-precision weights."""
        return self._exact is not None

    def screen_with(self, precision: PrecisionConfig) -> None:
        """Refuse to change formats: a graph keeps those it was exported with."""
        raise ConfigError(
            "policy='hybrid' chooses formats as it goes, but an exported graph cannot change them; "
            "search with engine='incremental' and pass the formats of that result"
        )

    def effects(
        self, candidates: Sequence[Edge], predicted_kept: Sequence[bool], *, exact: bool
    ) -> list[float]:
        """See `Engine.effects`; measures the first candidates that share one destination."""
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
        """See `Engine.settle`; delegates to the exact engine."""
        assert self._exact is not None  # it screens
        return self._exact.settle(candidates, predicted_kept, wanted)

    def remove(self, edges: Sequence[Edge]) -> None:
        """See `Engine.remove`."""
        self._mask = np.maximum(self._mask, self._patcher.mask(edges))
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
        """Return the loss under each mask ``[candidate, dest, src]``, averaged over batches."""
        self._evaluations += len(masks)
        name, metric = self._metric
        by_batch = []
        for run, prompts in zip(self._runs, self._prompts, strict=True):
            logits = torch.from_numpy(self._patcher.run(prompts, mask=masks, head=head))
            logits = logits.to(run.logits.device)
            by_batch.append(row_losses(name, metric, logits, run.logits, run.batch).tolist())
        return [fmean(losses) for losses in zip(*by_batch, strict=True)]


def _check_padding(run: CleanRun) -> None:
    """Refuse padded prompts: graphs have no padding mask."""
    padding = run.start_arguments.get("attention_mask")
    if padding is not None and not bool(padding.all()):
        raise ExportError(
            "prompts are padded, but graphs have no padding mask; use prompts of one length"
        )


class Factory:
    """Target of the entry point ``pahq.engines``; see `pahq_plugin.engines.protocol.EngineFactory`."""

    def default_precision(self, device: torch.device) -> PrecisionConfig:
        """Return int8 weights: E4M3 has ten times the noise and would leave most edges to ``exact``."""
        return PrecisionConfig(low="int8", mlp="int8", activations="high")

    def __call__(
        self, question: Question, precision: PrecisionConfig, exact: Callable[[], Engine]
    ) -> OnnxEngine:
        """Return the engine for a question."""
        return OnnxEngine(question, precision, None if precision.is_exact else exact())


factory = Factory()
