"""The bundled language model; its weights, configuration and card are in ``bundled/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pahq_plugin.errors import ModelError
from pahq_plugin.problems import vocabulary
from pahq_plugin.problems.prompt_files import Encoder

if TYPE_CHECKING:
    from pahq_plugin.models.load import HookedTransformer

FOLDER = Path(__file__).parent / "bundled"


def config() -> dict[str, Any]:
    """Return the arguments of TransformerLens' configuration that the model was trained with."""
    return json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


def encoder() -> Encoder:
    """Return the encoder of text to token ids; words are separated by white space."""
    return Encoder(
        encode=lambda text: vocabulary.encode(text.split()),
        bos=vocabulary.encode([vocabulary.BOS])[0],
        d_vocab=len(vocabulary.WORDS),
    )


def load(device: str = "cpu") -> HookedTransformer:
    """Load a new copy of the model, in evaluation mode, float32."""
    from safetensors import safe_open

    from pahq_plugin.models.load import language_model

    with safe_open(FOLDER / "model.safetensors", framework="pt", device=device) as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("vocabulary_sha256") != vocabulary.digest():
        raise ModelError(
            "the bundled weights belong to another vocabulary; "
            "run python -m benchmarks.train_bundled_model"
        )
    return language_model(config(), state, device)
