"""What a run cost."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Stats:
    """What a run cost.

    Attributes:
        evaluations: patched model evaluations, one per row of a batch of candidates.
        re_evaluations: edges decided again in FP32 because of the guard band or the watch on it.
        seconds: wall-clock time of the search, without loading the model.
        peak_bytes: peak memory: of the GPU's allocator, or resident memory of the process.
        forward_equivalents: ``seconds`` over the time of one plain forward of the same prompts, in the
            model's own precision.
        guard: relative width, floor and number of widenings of the guard band; empty without one.
        sensitivity: of the hybrid policy, the error of each part in its configured format
            (`pahq_plugin.discovery.hybrid`); empty without one.
        memory: under ``max_memory``, in bytes: the budget, what the search took of it at its peak,
            weights, those that stayed, and what was read from disk or copied to the GPU; else empty.
    """

    evaluations: int = 0
    re_evaluations: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    forward_equivalents: float = 0.0
    guard: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
