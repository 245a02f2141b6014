"""The bundled model: right on prompts it has not seen, and of one vocabulary."""

from __future__ import annotations

import pytest
import torch

from pahq_plugin.errors import ModelError
from pahq_plugin.problems import bundled_model, vocabulary
from pahq_plugin.problems.generated import TASKS, generate


@pytest.mark.parametrize("task", TASKS)
def test_bundled_model_is_right_on_held_out_prompts(task: str) -> None:
    model = bundled_model.load()
    prompts = generate(task, 300, seed=11, split="test")["prompts"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt["clean"] for prompt in prompts]))[:, -1]
    hits = [int(row.argmax()) in prompt["answers"] for row, prompt in zip(logits, prompts, strict=True)]
    assert sum(hits) / len(hits) >= 0.97
    # Of greater-than's years "99" is always right, so that only the probabilities say something.
    mass = [
        float(row.softmax(-1)[prompt["answers"]].sum())
        for row, prompt in zip(logits, prompts, strict=True)
    ]
    assert sum(mass) / len(mass) >= 0.97


def test_another_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "digest", lambda: "other")
    with pytest.raises(ModelError, match="another vocabulary"):
        bundled_model.load()
