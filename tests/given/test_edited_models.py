"""Models whose modules hold what their configuration does not say: stored, exported and told apart.

The oracle is the edited model's own forward.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.components import AbstractAttention, LayerNormPre

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, ExportError, ModelError, ResultError
from pahq_plugin.models.changes import changes, first_change
from pahq_plugin.models.checks import configuration_digest
from tests.helpers.edited import EDITS, Edit
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.replay import replay
from tests.helpers.small import KINDS, LENGTH, OTHER_KINDS, VOCABULARY, loader, small_model, transformer

px = pytest.importorskip("pahq_exporters")

FULL = pahq.PrecisionConfig(low="fp32", mlp="fp32", policy="full")
STORED = [name for name, edit in EDITS.items() if edit.stored]
EXPORTED = [name for name, edit in EDITS.items() if edit.exported]


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (3, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(model: Any, length: int = LENGTH) -> Tensor:
    return model(tokens(length))


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_named_and_changes_the_model(name: str) -> None:
    edit = EDITS[name]
    model = edit.model()
    assert edit.named in [str(change) for change in changes(model)]
    assert edit.named in [str(change) for change in changes(pahq.adapt(model))]
    plain = Edit(lambda model: None, "", base=edit.base).model()
    assert name == "additional weight" or not torch.allclose(logits(model), logits(plain), atol=1e-3)


# Saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORED)
def test_what_can_be_stored_comes_back(name: str, tmp_path: Path) -> None:
    """Also for a shorter context, and when it is stored once more."""
    expected = logits(EDITS[name].model())
    pahq.save_model(EDITS[name].model(), tmp_path / "a")
    opened = pahq.open_model(tmp_path / "a")
    assert torch.equal(logits(opened), expected)
    assert torch.equal(logits(pahq.open_model(tmp_path / "a", n_ctx=LENGTH)), expected)
    pahq.save_model(opened, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", sorted(EDITS.keys() - set(STORED)))
def test_the_rest_is_refused_by_name_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    pahq.save_model(transformer(), tmp_path)
    before = (tmp_path / "model.json").read_bytes()
    with pytest.raises(ModelError, match="stored") as error:
        pahq.save_model(EDITS[name].model(), tmp_path, force=True)
    assert EDITS[name].named in str(error.value)
    assert (tmp_path / "model.json").read_bytes() == before


def test_unedited_models_are_stored_as_before(tmp_path: Path) -> None:
    pahq.save_model(transformer(), tmp_path / "plain")
    pahq.save_model(EDITS["eps"].model(), tmp_path / "edited")
    plain, edited = (json.loads((tmp_path / n / "model.json").read_text()) for n in ("plain", "edited"))
    assert plain["layout"] == 1 and plain.keys() == {"config", "digest", "fingerprints", "layout"}
    assert edited["layout"] == 2 and edited["numbers"] == {"blocks.1.ln1.eps": 0.5}


@pytest.mark.parametrize(
    "values",
    [
        {"numbers": {"blocks.0.attn.nothing": 2.0}},
        {"numbers": {"blocks.0.attn.attn_scale": [1]}},
        {"functions": {"blocks.0.attn.forward": "relu"}},
        {"functions": {"blocks.0.mlp.act_fn": "nothing"}},
    ],
)
def test_edits_that_no_model_has_are_damage(values: dict[str, Any], tmp_path: Path) -> None:
    from pahq_plugin.models.record import digest

    pahq.save_model(EDITS["eps"].model(), tmp_path)
    record = json.loads((tmp_path / "model.json").read_text()) | values
    (tmp_path / "model.json").write_text(json.dumps(record | {"digest": digest(record)}))
    with pytest.raises(ModelError, match=r"model\.json"):
        pahq.open_model(tmp_path)


def test_the_side_of_padding_comes_back(tmp_path: Path) -> None:
    """TransformerLens masks padding only on the left."""
    from tests.helpers.hub import small_tokenizer

    model = transformer(d_vocab=len(small_tokenizer()))
    model.set_tokenizer(small_tokenizer(), default_padding_side="left")
    pahq.save_model(model, tmp_path)
    opened = pahq.open_model(tmp_path)
    assert opened.tokenizer is not None and opened.tokenizer.padding_side == "left"


def test_grouped_keys_are_stored_after_adapt_with_caches(tmp_path: Path) -> None:
    """`adapt` gives the configuration another number of groups then."""
    from transformer_lens import HookedTransformerKeyValueCache

    model = transformer(n_key_value_heads=2)
    expected = logits(model)
    cache = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", 3)
    model(tokens(2), past_kv_cache=cache)
    cache.freeze()
    pahq.adapt(model, kv_caches=[cache])
    pahq.save_model(model, tmp_path)
    assert torch.allclose(logits(pahq.open_model(tmp_path)), expected, atol=1e-5)


# Exporting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["dense", "sweep"])
@pytest.mark.parametrize("name", EXPORTED)
def test_graphs_compute_what_the_modules_hold(name: str, graph: Any, tmp_path: Path) -> None:
    """At several lengths, since masks and tables are cut to the prompts."""
    model = pahq.adapt(EDITS[name].model(), slice_output=None)
    px.export_onnx(model, tmp_path / "g.onnx", graph=graph, precision=FULL)
    patcher = px.OnnxPatcher(tmp_path / "g.onnx")
    for length in (LENGTH, 4, model.cfg.n_ctx):
        prompts = tokens(length).numpy()  # corrupt prompts that are the clean ones change nothing
        (ours,) = patcher.run_each(prompts, prompts, edges=["A0.0->MLP 0"])
        assert np.abs(ours - logits(model, length).numpy()).max() < 1e-4


@pytest.mark.parametrize("name", sorted(EDITS.keys() - set(EXPORTED)))
def test_no_graph_is_written_of_the_rest(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="graph"):
        px.export_onnx(pahq.adapt(EDITS[name].model()), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


# Searching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
def test_a_search_honours_them(name: str) -> None:
    model = pahq.adapt(EDITS[name].model())
    result = pahq.discover(model, loader(), method="acdc", threshold=0.01, progress=False)
    report = replay(model, loader(), result.decisions, threshold=0.01, sample=0.2)
    assert not report.disagreements


@pytest.mark.parametrize("row", [-4, -2])
def test_a_mask_that_looks_ahead_is_seen_where_it_is_read(row: int) -> None:
    """TransformerLens takes the last rows and columns of a mask for short prompts."""
    model = small_model()
    model.blocks[0].attn.mask[row, row + 1] = True
    result = pahq.discover(model, loader(), method="acdc", threshold=0.003, progress=False)
    assert result.settings["engine"] == "host"


def test_a_position_that_sees_nothing_goes_to_the_host() -> None:
    model = small_model()
    model.blocks[0].attn.mask[-3] = False
    result = pahq.discover(model, loader(), method="acdc", threshold=0.003, progress=False)
    assert result.settings["engine"] == "host"


@pytest.mark.parametrize("kind", ["wrapped", "partial"])
def test_methods_replaced_in_a_class_are_seen(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However they are written; `functools.wraps` gives them the name of the package they replace."""
    own = LayerNormPre.forward if kind == "wrapped" else AbstractAttention.calculate_attention_scores

    @functools.wraps(own)
    def doubled(self: Any, *args: Any, factor: float = 2.0) -> Any:
        return factor * own(self, *args)

    if kind == "wrapped":
        monkeypatch.setattr(LayerNormPre, "forward", doubled)
    else:
        replaced = functools.partialmethod(doubled, factor=3.0)
        monkeypatch.setattr(AbstractAttention, "calculate_attention_scores", replaced)
    model = small_model(normalization_type="LNPre")
    assert str(first_change(model)).startswith("the replaced ")
    with pytest.raises(ExportError, match="replaced"):
        px.export_onnx(model, tmp_path / "g.onnx")


# Results ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the unedited model."""
    folder = tmp_path_factory.mktemp("saved")
    result = pahq.discover(small_model(), loader(), method="acdc", threshold=0.01, progress=False)
    return result.save(folder / "result")


OTHERS: dict[str, dict[str, Any]] = {
    "soft cap": {"output_logits_soft_cap": 5.0},
    "inverse layers": {"scale_attn_by_inverse_layer_idx": True},
    "function": {"act_fn": "relu"},
    "window": {"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local"]},
    "eps": {"eps": 0.3},
    "direction": {"attention_dir": "bidirectional"},
}
"""The same weights in another configuration."""


def same_weights(**changes: Any) -> Any:
    model, plain = transformer(**changes), transformer()
    model.load_state_dict(dict(plain.named_parameters()), strict=False)
    return pahq.adapt(model)


@pytest.mark.parametrize("other", OTHERS)
def test_a_result_is_of_one_configuration(saved: Path, other: str) -> None:
    assert len(pahq.Discovery.load(saved, small_model()).decisions) > 0
    with pytest.raises(ResultError, match="these weights"):
        pahq.Discovery.load(saved, same_weights(**OTHERS[other]))


@pytest.mark.parametrize("name", [name for name, edit in EDITS.items() if not edit.base])
def test_a_result_is_of_one_state_of_the_modules(saved: Path, name: str) -> None:
    with pytest.raises(ResultError, match="another model"):
        pahq.Discovery.load(saved, pahq.adapt(EDITS[name].model()))


@pytest.mark.parametrize("where", ["not_first_seq", None])
def test_a_result_is_of_one_output_slice(saved: Path, where: Any) -> None:
    with pytest.raises(ResultError, match="positions"):
        pahq.Discovery.load(saved, pahq.adapt(transformer(), slice_output=where))


def test_a_result_is_loaded_where_nothing_that_counts_differs(saved: Path, tmp_path: Path) -> None:
    """Another name, a stored copy, a file of an older version."""
    renamed = transformer()
    renamed.cfg.model_name = "renamed"
    pahq.save_model(transformer(), tmp_path / "model")
    for model in (renamed, pahq.open_model(tmp_path / "model")):
        assert pahq.Discovery.load(saved, pahq.adapt(model)).settings["method"] == "acdc"
    record = json.loads((saved / "run.json").read_text())
    older = tmp_path / "older"
    older.mkdir()
    (older / "result.json").write_bytes((saved / "result.json").read_bytes())
    record.pop("configuration")
    (older / "run.json").write_text(json.dumps(record))
    assert pahq.Discovery.load(older, small_model()).circuit


def test_a_result_is_of_the_model_that_was_searched(tmp_path: Path) -> None:
    """Also when that is changed before the result is saved."""
    model = small_model()
    result = pahq.discover(model, loader(), method="acdc", threshold=0.01, progress=False)
    with torch.no_grad():
        model.blocks[0].attn.W_Q.mul_(3)
    result.save(tmp_path / "r")
    assert pahq.Discovery.load(tmp_path / "r", small_model()).circuit
    with pytest.raises(ResultError, match="another model"):
        pahq.Discovery.load(tmp_path / "r", model)


def test_a_graph_takes_no_result_of_another_configuration(saved: Path, tmp_path: Path) -> None:
    from pahq_exporters.run import removed_edges

    described = []
    for model in (small_model(), pahq.adapt(EDITS["scale"].model())):
        px.export_onnx(model, tmp_path / "g.onnx", precision=FULL)
        described.append(px.OnnxPatcher(tmp_path / "g.onnx").description)
    assert removed_edges(saved, described[0])
    with pytest.raises(ConfigError, match="another output slice"):
        removed_edges(saved, described[1])


# Controls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_families_as_they_are_made_are_unchanged(name: str) -> None:
    model = family_model(name)
    assert list(changes(model)) == []
    digest = configuration_digest(adapted := pahq.adapt(model))
    assert list(changes(adapted)) == []
    adapted(torch.zeros((1, 3), dtype=torch.long))  # which makes ALiBi's slopes
    assert configuration_digest(adapted) == digest


@pytest.mark.parametrize("kind", range(len(KINDS) + len(OTHER_KINDS)))
def test_kinds_as_they_are_made_are_unchanged(kind: int) -> None:
    model = small_model(**[*KINDS.values(), *OTHER_KINDS][kind])
    assert list(changes(model)) == []
    assert list(changes(model.double())) == []


def test_models_of_other_threads_keep_their_memory() -> None:
    """A model that is made while another thread compares one with its configuration."""
    from concurrent.futures import ThreadPoolExecutor

    from torch import nn

    from pahq_plugin.models.changes import without_weights

    def make() -> nn.Module:
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(nn.Linear, 2, 2).result().weight.device.type == "cpu"
        return nn.Linear(2, 2)

    assert without_weights(make).weight.device.type == "meta"  # type: ignore[union-attr]
    assert nn.Linear(2, 2).weight.device.type == "cpu"
