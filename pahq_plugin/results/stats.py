"""Record the cost of a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Stats:
    """The cost of a run.

    Attributes:
        evaluations: patched forwards, one per row of a batch of candidates.
        re_evaluations: edges decided again in FP32 because of the guard band or its monitoring.
        seconds: wall-clock time of the search, without loading the model.
        peak_bytes: peak memory: of the GPU's allocator, or resident memory of the process.
        forward_equivalents: ``seconds`` over the time of one plain forward of the same prompts, in the
            model's own precision.
        guard: relative width, floor and number of widenings of the guard band; empty without a band.
        sensitivity: of the hybrid policy, the error of each part in its configured format
            (`pahq_plugin.discovery.hybrid`); empty without one.
        memory: with ``max_memory``, in bytes: the budget, the peak use, all weights, resident weights,
            and weights read from disk or copied to the GPU; empty otherwise.
    """

    evaluations: int = 0
    re_evaluations: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    forward_equivalents: float = 0.0
    guard: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
