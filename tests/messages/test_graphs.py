"""Messages about ONNX graphs: what cannot be exported, loaded, or run in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import pahq_exporters.runtime.heads
from pahq_exporters import OnnxPatcher, check, export_onnx
from pahq_exporters.description import from_json
from pahq_exporters.engine import _check_padding
from pahq_exporters.graph.write import DEFAULT, describe
from pahq_exporters.run import run
from pahq_exporters.runtime.heads import Heads, write_heads
from pahq_exporters.runtime.prompt_file import read_prompts
from pahq_exporters.session import LEVELS, MODES, open_session
from pahq_plugin.errors import ConfigError, ExportError, GraphError, PahqError, PromptError
from pahq_plugin.precision.config import PrecisionConfig
from tests.helpers.refused import refused
from tests.helpers.small import patchable, small_model, tokens, transformer

EDGE, INTO_HEAD = "A0.1->MLP 1", "A0.1->A1.2.Q"
CLEAN, CORRUPT = tokens(0).numpy(), tokens(1).numpy()


@dataclass
class Graphs:
    """Exports of one small model."""

    dense: OnnxPatcher
    sweep: OnnxPatcher
    late: OnnxPatcher
    fixed: OnnxPatcher
    not_first: OnnxPatcher
    by_position: OnnxPatcher


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder, model = tmp_path_factory.mktemp("graphs"), small_model()

    def patcher(name: str, exported: Any = model, **options: Any) -> OnnxPatcher:
        return OnnxPatcher(export_onnx(exported, folder / f"{name}.onnx", **options), threads=1)

    others = small_model()
    others.out_slice = (slice(None), slice(1, None))
    return Graphs(
        dense=patcher("dense"),
        sweep=patcher("sweep", graph="sweep"),
        late=patcher("late", start_layer=1),
        fixed=patcher("fixed", head=(1, 2)),
        not_first=patcher("not_first", others, positions="model"),
        by_position=patcher("by_position", patchable(transformer(), seq_len=6)),
    )


CALLS: list[tuple[Callable[[Graphs], object], type[PahqError], str]] = [
    (
        lambda g: g.dense.prompts(CLEAN[0]),
        PromptError,
        "tokens must be token ids [batch, pos], all prompts of one length; got int64 of shape [6]",
    ),
    (
        lambda g: g.by_position.prompts(CLEAN[:, :4]),
        PromptError,
        "tokens: 4 tokens, but the graph has edges for 6 positions",
    ),
    (
        lambda g: g.not_first.prompts(CLEAN[:, :1]),
        PromptError,
        "prompts have 1 token, but this graph's logits leave the first one out",
    ),
    (
        lambda g: g.late.prompts(CLEAN),
        PromptError,
        "this graph starts at block 1: give residual [batch, pos, 32] and earlier [",
    ),
    (
        lambda g: g.late.sources(CLEAN),
        PromptError,
        "this graph starts at block 1 and takes no tokens",
    ),
    (
        lambda g: g.dense.prompts(CLEAN, CORRUPT[:2]),
        PromptError,
        "corrupt prompts are [2, 6], but the clean ones [4, 6]",
    ),
    (
        lambda g: g.dense.run(g.dense.prompts(CLEAN, CORRUPT), CORRUPT, edges=[EDGE]),
        ConfigError,
        "these prompts were checked already; pass corrupt to patcher.prompts(...)",
    ),
    (
        lambda g: g.dense.run(CLEAN, CORRUPT, edges=[EDGE], mask=g.dense.mask([EDGE])),
        ConfigError,
        "give edges or a mask, not both",
    ),
    (
        lambda g: g.dense.run(CLEAN, CORRUPT, mask=np.zeros(3)),
        ConfigError,
        "mask must be [dest, src] = [",
    ),
    (
        lambda g: g.dense.run(CLEAN, CORRUPT, edges=EDGE),
        GraphError,
        f"edges='{EDGE}' must be a list of edges",
    ),
    (
        lambda g: g.sweep.run(CLEAN, CORRUPT, edges=[INTO_HEAD], head=(0, 0)),
        ConfigError,
        "a sweep graph keeps the head of its edge in FP32, (1, 2), not (0, 0)",
    ),
    (
        lambda g: g.fixed.run(CLEAN, CORRUPT, edges=[EDGE], head=(0, 1)),
        ConfigError,
        "head=(0, 1): this graph has only head (1, 2) in FP32",
    ),
    (lambda g: g.dense.feed({"x": CLEAN}), ConfigError, "not inputs of this graph: "),
    (
        lambda g: g.dense.mask([3]),
        GraphError,
        "3 is not an edge; write one like 'Resid Start->",
    ),
    (
        lambda g: g.dense.mask(["x"]),
        GraphError,
        "'x' is not an edge; edges are named like 'Resid Start->",
    ),
    (
        lambda g: g.dense.mask(["A9.1->MLP 1"]),
        GraphError,
        "edge 'A9.1->MLP 1': no source 'A9.1' in this graph; sources are 'Resid Start' to ",
    ),
    (
        lambda g: g.dense.mask(["A0.1->MLP 9"]),
        GraphError,
        "edge 'A0.1->MLP 9': no destination 'MLP 9' in this graph; sources are",
    ),
    (
        lambda g: g.dense.mask(["A1.1->MLP 0"]),
        GraphError,
        "edge 'A1.1->MLP 0': MLP 0 does not read A1.1, which is not before it",
    ),
    (
        lambda g: g.dense.mask([f"{EDGE} @0"]),
        GraphError,
        f"edge '{EDGE}' @0: this graph patches all positions at once",
    ),
    (
        lambda g: g.by_position.mask([f"{EDGE} @6"]),
        GraphError,
        f"edge '{EDGE}', position 6: edges of this graph are of single positions; write one of 0 to 5",
    ),
    (
        lambda g: g.dense.run(CLEAN, CORRUPT, edges=[EDGE], head="A0.1"),  # type: ignore[arg-type]
        GraphError,
        "head 'A0.1' must be a pair (layer, head) of integers",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS, ids=[case[-1] for case in CALLS])
def test_calls_of_a_patcher(
    call: Callable[[Graphs], object], error: type[PahqError], message: str, graphs: Graphs
) -> None:
    with refused(error, message):
        call(graphs)


# Loading ------------------------------------------------------------------------------------------

SESSIONS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "x"}, f"mode='x' must be one of {', '.join(MODES)}"),
    ({"threads": 0}, "threads=0 must be an integer between 1 and "),
    ({"level": "x"}, f"level='x' must be one of {', '.join(LEVELS)}"),
    ({"providers": 3}, "providers=3 must be a list, such as ['cuda']"),
    ({"providers": ["x"]}, "provider 'x' is not available here (available: "),
]


@pytest.mark.parametrize(("settings", "message"), SESSIONS)
def test_settings_of_a_session(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"providers": None, "mode": "speed", "threads": None, "level": None} | settings
    with refused(ConfigError, message):
        open_session(tmp_path / "g.onnx", **arguments)


def test_files_of_graphs(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    with refused(ExportError, f"no file {path}; make one with: pahq export"):
        open_session(path, None, "speed", None, None)
    path.write_bytes(b"hello")
    with refused(ExportError, f"{path} is not an ONNX model that ONNX Runtime can load ("):
        open_session(path, None, "speed", None, None)
    with refused(ExportError, f"{path} is not an ONNX model ("):
        check.described_in(path)
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), str(path))
    with refused(ExportError, f"{path}: onnx.checker rejects it ("):
        check.check_names(path)


def test_graphs_that_compute_something_else(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_onnx(
        small_model(), tmp_path / "g.onnx", precision=PrecisionConfig(low="fp32", mlp="fp32")
    )
    with refused(ExportError, f"{path}, mode speed: logits differ from PyTorch's by ", "correlation "):
        check.compare_on(path, small_model(seed=1), tokens())
    known = check.described_in(path)
    known = replace(known, precision=(known.precision or {}) | {"activations": "high"})
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    monkeypatch.setattr(
        check,
        "read_precision",
        lambda described: PrecisionConfig(low="int8", mlp="int8", activations="high"),
    )
    with refused(
        ExportError,
        "on a tiny model of this architecture ONNX Runtime and the reference evaluator differ by ",
    ):
        check.check_meaning(small_model(), known)


KNOWN = replace(describe(small_model(), "dense", DEFAULT, 0, None, "all", Path("g.onnx")), id="this")


def test_descriptions() -> None:
    values = json.loads(KNOWN.to_json())
    with refused(ExportError, "g.onnx has format '99'; this version reads "):
        from_json(json.dumps(values | {"format": 99}), "g.onnx")
    with refused(ExportError, "g.onnx: the description of the graph is damaged (n_heads)"):
        from_json(json.dumps(values | {"n_heads": 0}), "g.onnx")


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return edit


HEADS: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda content: bytes(8) + content[8:], "a header of 0 bytes"),
    (edited(lambda h: h.pop("blocks.1")), "no blocks.1"),
    (
        edited(lambda h: h["blocks.1"].update(dtype="F16")),
        "blocks.1 is F16 [4, 4, 32, 8] instead of F32 [4, 4, 32, 8]",
    ),
    (
        edited(lambda h: h["blocks.1"].update(data_offsets=[3, 9])),
        "blocks.1 is at 3 to 9 of 32768 bytes",
    ),
    (edited(lambda h: h.update({"blocks.1": h["blocks.0"]})), "two blocks have the same offset"),
]


@pytest.mark.parametrize(("edit", "message"), HEADS, ids=[message for _, message in HEADS])
def test_files_of_heads(edit: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    write_heads(small_model(), KNOWN, path)
    whole = Heads(path, KNOWN)
    content = path.read_bytes()
    path.write_bytes(edit(content))
    with refused(ExportError, f"{path} is damaged ({message})"):
        Heads(path, KNOWN)
    path.unlink()
    with refused(ExportError, f"{path} is damaged ([Errno 2] No such file"):
        whole.weights(0, 0)


def test_heads_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        pahq_exporters.runtime.heads.write_heads(small_model(), KNOWN, tmp_path / "none" / "heads")


# Prompts ------------------------------------------------------------------------------------------

GOOD = {"clean": [1, 2], "corrupt": [1, 3], "answers": [1], "wrong_answers": [2]}


def test_files_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    with refused(ConfigError, "limit=0 must be an integer above 0"):
        read_prompts(file, 0)
    for content, message in (
        (3, f'{file} must hold {{"prompts": [...]}} in JSON ('),
        (
            {"prompts": [GOOD, GOOD | {"clean": [1]}]},
            f"{file}: prompts have [1, 2] tokens; all must have",
        ),
        (
            {"prompts": [GOOD | {"clean": "x"}]},
            "['clean'] is text; this needs token ids, since no token",
        ),
        ({"prompts": [GOOD | {"clean": 3}]}, "['clean'] must be a list of token ids"),
    ):
        file.write_text(json.dumps(content))
        with refused(PromptError, message):
            read_prompts(file)


def test_graphs_that_take_no_tokens(graphs: Graphs, tmp_path: Path) -> None:
    path = export_onnx(small_model(), tmp_path / "late.onnx", start_layer=1)
    message = "starts at block 1 and takes no tokens; export one with start_layer=0"
    with refused(ConfigError, f"{path} {message}"):
        run(path, tmp_path / "p.json", all_edges=True)


def test_prompts_that_are_padded() -> None:
    padded = SimpleNamespace(start_arguments={"attention_mask": torch.tensor([0, 1])})
    message = "prompts are padded, but graphs have no padding mask; use prompts of one length"
    with refused(ExportError, message):
        _check_padding(padded)  # type: ignore[arg-type]
