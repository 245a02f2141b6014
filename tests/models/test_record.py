"""``model.json``: what is written is read, and its digest sees every change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pahq_plugin.errors import ModelError
from pahq_plugin.models.record import (
    config_record,
    configured,
    digest,
    read_record,
    stored_name,
    write_record,
)
from tests.helpers.small import transformer


def record() -> dict[str, Any]:
    return {"layout": 1, "config": config_record(transformer()), "fingerprints": {"embed.W_E": 5}}


def test_a_record_comes_back(tmp_path: Path) -> None:
    write_record(tmp_path, written := record())
    assert read_record(tmp_path) == written and written["digest"] == digest(record())
    cfg = configured(tmp_path, written["config"], {"a": 1, "b": 2}, n_ctx=3)
    own = transformer().cfg
    for name in ("n_layers", "d_model", "n_heads", "act_fn", "normalization_type", "dtype"):
        assert getattr(cfg, name) == getattr(own, name)
    assert cfg.n_ctx == 3 < own.n_ctx and cfg.dtype is torch.float32


@pytest.mark.parametrize("path", [("layout",), ("config", "act_fn"), ("fingerprints", "embed.W_E")])
def test_every_change_is_seen(path: tuple[str, ...], tmp_path: Path) -> None:
    write_record(tmp_path, record())
    file = tmp_path / "model.json"
    found = json.loads(file.read_text())
    inner = found
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = 2 if path[-1] != "act_fn" else "relu"
    file.write_text(json.dumps(found))
    with pytest.raises(ModelError, match=r"model\.json"):
        read_record(tmp_path)


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest(dict(reversed(record().items()))) == digest(record() | {"digest": "other"})


def test_the_name_of_a_stored_model(tmp_path: Path) -> None:
    assert stored_name(tmp_path) is None and stored_name("gpt2") is None
    config = config_record(transformer(model_name="mine"))
    write_record(tmp_path, record() | {"config": config})
    assert stored_name(tmp_path) == "mine"
