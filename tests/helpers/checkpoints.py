"""Small searches with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pahq_plugin.discovery.discover import discover
from pahq_plugin.results.result import Discovery
from tests.helpers.small import loader, small_model

THRESHOLD = 0.003


def run(path: Path | None, **settings: Any) -> Discovery:
    defaults = {"method": "pahq", "threshold": THRESHOLD, "progress": False, "checkpoint_every": 0.0}
    return discover(small_model(), loader(), checkpoint=path, **(defaults | settings))


def taken(result: Discovery) -> list[tuple[float, bool, bool]]:
    return [(d.effect, d.kept, d.exact) for d in result.decisions]
