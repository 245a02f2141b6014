"""``model.json``: what is written is read, and its digest sees every change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest(dict(reversed(record().items()))) == digest(record() | {"digest": "other"})


def test_the_name_of_a_stored_model(tmp_path: Path) -> None:
    assert stored_name(tmp_path) is None and stored_name("gpt2") is None
    config = config_record(transformer(model_name="mine"))
    write_record(tmp_path, record() | {"config": config})
    assert stored_name(tmp_path) == "mine"
