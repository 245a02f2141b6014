"""What a problem computes and which prompts it has; prompt files of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def outputs(problem: Any, batch: Any) -> torch.Tensor:
    with torch.inference_mode():
        return problem.model(batch.clean)[problem.model.out_slice]


def prompts_of(problem: Any) -> list[list[int]]:
    loaders = (problem.train_loader, problem.test_loader)
    return [row for loader in loaders for batch in loader for row in batch.clean.tolist()]


def user_file(folder: Path, content: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def text_pair(**changes: Any) -> dict[str, Any]:
    pair = {
        "clean": "When Mary and John went to the store , John gave a drink to",
        "corrupt": "When Mary and John went to the store , Mary gave a drink to",
        "answers": [" Mary"],
        "wrong_answers": ["John"],
    }
    return {**pair, **changes}
