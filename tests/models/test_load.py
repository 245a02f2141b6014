"""Models by name: those of a hub, and weights of another configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

from pahq_plugin.errors import ModelError, ProblemError
from pahq_plugin.models import load as host_problems
from pahq_plugin.problems import bundled_model, load_problem


def test_weights_that_do_not_fit_are_refused() -> None:
    state = load_file(bundled_model.FOLDER / "model.safetensors")
    missing = {name: value for name, value in state.items() if name != "blocks.1.attn.W_Q"}
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.W_Q"):
        host_problems.language_model(bundled_model.config(), missing)
    with pytest.raises(ModelError, match=r"pos_embed\.W_pos"):
        host_problems.language_model({**bundled_model.config(), "n_ctx": 16}, state)


@pytest.mark.parametrize(
    ("name", "folds"), [("gpt2", True), ("mixtral", False), ("Qwen/Qwen2-0.5B", True)]
)
def test_norms_are_folded_where_transformer_lens_can(
    monkeypatch: pytest.MonkeyPatch, name: str, folds: bool
) -> None:
    asked: dict[str, Any] = {}

    def load(_: str, **options: Any) -> HookedTransformer:
        asked.update(options)
        raise OSError("no hub")

    monkeypatch.setattr(HookedTransformer, "from_pretrained", load)
    monkeypatch.setattr("pahq_plugin.models.load._hub_weights", lambda official: None)
    with pytest.raises(ProblemError):
        load_problem("ioi", model=name)
    assert asked["fold_ln"] == folds


@pytest.mark.parametrize("offline", ["1", "0"])
def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, offline: str) -> None:
    def unreachable(*_: Any, **__: Any) -> HookedTransformer:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(HookedTransformer, "from_pretrained", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(ProblemError, match="'gpt2'") as caught:
        load_problem("ioi", model="gpt2")
    assert "\n" not in str(caught.value)
    assert ("HF_HUB_OFFLINE is set" in str(caught.value)) == (offline == "1")


@pytest.mark.full
def test_offline_without_a_cache_is_one_error(tmp_path: Path) -> None:
    """What TransformerLens itself raises then, not a stand-in for it."""
    code = (
        "from pahq_plugin.problems import load_problem\n"
        "from pahq_plugin.errors import ProblemError\n"
        "for name, model in (('ioi', 'gpt2'), ('docstring', None)):\n"
        "    try: load_problem(name, model=model)\n"
        "    except ProblemError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    source = str(Path(bundled_model.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": source, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ran.stdout.strip().splitlines()
    assert len(lines) == 2
    assert all("could not be loaded" in line and "HF_HUB_OFFLINE is set" in line for line in lines)
