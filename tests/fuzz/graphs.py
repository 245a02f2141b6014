"""Graphs of other tools and of ours: EAP-IG's JSON, ONNX files, their descriptions and heads."""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from pahq_exporters import OnnxPatcher, export_onnx
from pahq_exporters.description import METADATA_KEY, from_json
from pahq_exporters.interchange.graph_json import read_graph_json, write_graph_json
from pahq_exporters.runtime.heads import Heads
from tests.fuzz.bench import Bench, Refused, holds
from tests.fuzz.hostile import NUMBERS, TEXTS, VALUES, json_text, written
from tests.fuzz.octets import damaged_bytes
from tests.fuzz.results import discoveries, tiny
from tests.fuzz.target import Target

TOKENS, CORRUPT = [[1, 2, 3]], [[4, 2, 5]]
EDGE = "Resid Start->A0.0.Q"
LOCATIONS = ["../secret.data", "/etc/passwd", "e.onnx", "e.heads.safetensors", "sub/../../secret.data",
             "../in/model/e.onnx.data", "./e.onnx.data", "", "/dev/zero", "/dev/stdin", "link.data",
             *TEXTS]  # fmt: skip


@cache
def exported() -> dict[str, bytes]:
    """A dense graph, one with its weights in a file of their own, a sweep graph, graph JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(tiny(), folder / "d.onnx")
        export_onnx(tiny(), folder / "e.onnx")
        onnx.save_model(
            onnx.load(folder / "e.onnx"), str(folder / "e.onnx"), save_as_external_data=True,
            location="e.onnx.data", size_threshold=60,
        )  # fmt: skip
        export_onnx(tiny(), folder / "s.onnx", graph="sweep")
        for number, discovery in enumerate(discoveries()):
            write_graph_json(discovery, folder / f"{number}.json")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_graph_json(content: bytes, bench: Bench) -> None:
    """A circuit of the model's edges, with a finite score for each of them."""
    model = tiny()
    read = bench.call(read_graph_json, bench.put("graph.json", content), model)
    holds(read.circuit <= model.edges, "an edge that the model does not have")
    holds(read.scores.keys() == model.edges, "not every edge has a score")
    holds(all(math.isfinite(score) for score in read.scores.values()), "a score that is not finite")
    scores = read.prune_scores(model)
    holds(all(bool(score.isfinite().all()) for score in scores.values()), "prune scores")


def description_of(content: bytes) -> dict[str, Any]:
    """The description in the metadata of a graph."""
    (entry,) = (e for e in onnx.load_from_string(content).metadata_props if e.key == METADATA_KEY)
    return json.loads(entry.value)


def check_description(content: bytes, bench: Bench) -> None:
    """Edges have their places, and what is no edge is told in one line."""
    text = content.decode("utf-8", "replace")
    known = bench.call(from_json, text, "graph.onnx")
    for edge, _ in zip(bench.call(known.edges), range(50), strict=False):
        place = bench.call(known.index_of, edge)
        holds(len(place) == len(known.mask_shape), "a place with as many axes as the mask")
        holds(all(0 <= at < n for at, n in zip(place, known.mask_shape, strict=True)), "inside the mask")
    heads = known.heads_file
    holds(heads is None or Path(heads).name == heads, f"heads beside another folder: {heads!r:.100}")
    with suppress(Refused):
        bench.call(known.index_of, "A0.0->nowhere")


def check_heads(content: bytes, bench: Bench) -> None:
    """Weights are those of the file: finite, of the right shape, and as they stand there."""
    known = from_json(json.dumps(description_of(exported()["d.onnx"])), "d.onnx")
    heads = bench.call(Heads, bench.put("d.heads.safetensors", content), known)
    found = bench.call(heads.weights, 0, 0)
    holds(found.shape == (4, known.d_model, known.d_head) and found.dtype == np.float32, "shape")
    holds(np.isfinite(found).all() and found.tobytes() in content, "weights that the file does not hold")


def check_onnx(content: tuple[str, str, bytes], bench: Bench) -> None:
    """It gives finite logits of the right shape, from files of its own folder only."""
    way, name, damaged = content
    for file, good in exported().items():
        bench.put(f"model/{file}", good)
    bench.put("secret.data", bytes(len(exported()["e.onnx.data"])))
    link = bench.inputs / "model" / "link.data"
    if not link.is_symlink():
        link.symlink_to(bench.inputs / "secret.data")
    path = bench.put(f"model/{name}", damaged)
    graph = path.with_name(f"{name[0]}.onnx")
    patcher = bench.call(OnnxPatcher, graph, threads=1)
    logits = bench.call(patcher.run, TOKENS, CORRUPT, edges=[EDGE])
    holds(np.isfinite(logits).all(), "logits that are not finite")
    holds(logits.shape == (1, 3, patcher.description.d_vocab_out), f"logits of shape {logits.shape}")
    if way == "location":
        _check_locations(damaged, path.parent)


def _check_locations(graph: bytes, folder: Path) -> None:
    """
    Raises:
        Violation: the graph's weights lie outside its folder.
    """
    for tensor in onnx.load_from_string(graph).graph.initializer:
        for entry in tensor.external_data:
            inside = entry.key != "location" or (folder / entry.value).resolve().is_relative_to(folder)
            holds(inside, f"weights were read from {entry.value!r:.100}")


@st.composite
def graph_files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """What was done, and a file to replace one of `exported` with."""
    files = exported()
    way = draw(st.sampled_from(("bytes", "description", "location", "node", "weights", "heads")))
    if way == "bytes":
        name = draw(
            st.sampled_from(("d.onnx", "e.onnx", "s.onnx", "e.onnx.data", "d.heads.safetensors"))
        )
        return way, name, draw(damaged_bytes([files[name], files["s.onnx"]]))
    if way == "heads":
        return way, "d.heads.safetensors", draw(heads_files())
    name = "e.onnx" if way == "location" else draw(st.sampled_from(("d.onnx", "s.onnx")))
    model = onnx.load_from_string(files[name])
    if way == "description":
        text = draw(written([description_of(files[name])])).decode("utf-8", "replace")
        model.metadata_props[0].value = text
    elif way == "location":
        _move(draw, model)
    elif way == "node":
        _change_node(draw, model)
    else:
        _change_weights(draw, model)
    return way, name, model.SerializeToString()


def _move(draw: st.DrawFn, model: Any) -> None:
    """Another place for weights that are not in the graph."""
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    tensor = draw(st.sampled_from(outside))
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = _text(draw(st.sampled_from(LOCATIONS)))
        elif draw(st.integers(0, 3)) == 0:
            entry.value = draw(st.sampled_from(("-1", "99999999999999999999", "0", "", "x", "1e3")))


def _change_node(draw: st.DrawFn, model: Any) -> None:
    node = model.graph.node[draw(st.integers(0, len(model.graph.node) - 1))]
    what = draw(st.sampled_from(("op_type", "domain", "input", "output", "again")))
    if what in ("op_type", "domain"):
        names = ("Identity", "If", "Loop", "PyOp", "custom.domain", "com.microsoft", "Exp", "Reshape")
        setattr(node, what, draw(st.sampled_from(names)))
    elif what == "again":
        model.graph.node.append(node)
    elif getattr(node, what):
        names = getattr(node, what)
        names[draw(st.integers(0, len(names) - 1))] = draw(
            st.sampled_from(("tokens", "logits", "mask", "x", ""))
        )


def _change_weights(draw: st.DrawFn, model: Any) -> None:
    tensor = model.graph.initializer[draw(st.integers(0, len(model.graph.initializer) - 1))]
    what = draw(st.sampled_from(("dims", "type", "data")))
    if what == "dims" and tensor.dims:
        sizes = (-1, 0, 1, 2, 2**31, 2**62)
        tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(st.sampled_from(sizes))
    elif what == "type":
        tensor.data_type = draw(st.integers(0, 30))
    elif tensor.raw_data:
        at = draw(st.integers(0, len(tensor.raw_data) - 1)) & ~3
        data = bytearray(tensor.raw_data)
        data[at : at + 4] = draw(
            st.sampled_from((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff" * 4))
        )
        tensor.raw_data = bytes(data)


def _text(value: str) -> str:
    """As protobuf holds it: UTF-8."""
    return value.encode("utf-8", "replace").decode()


@st.composite
def heads_files(draw: st.DrawFn) -> bytes:
    """A file of heads whose header is damaged, with the right length or not."""
    good = exported()["d.heads.safetensors"]
    size = int.from_bytes(good[:8], "little")
    header = draw(written([json.loads(good[8 : 8 + size])]))
    length = draw(st.sampled_from((len(header),) * 5 + (0, 2**63, len(header) - 1, len(good))))
    return max(0, length).to_bytes(8, "little") + header + good[8 + size :]


EDGES = (EDGE, "MLP 0->Resid End", "A0.0->MLP 0", "A0.0->A0.0.Q", "Resid Start->A0.0.Q @0")
CALLS = st.fixed_dictionaries(
    {"tokens": st.one_of(st.just(TOKENS), st.just(TOKENS), VALUES, st.just([[1, 9]]), st.just([[-1]]))},
    optional={
        "corrupt": st.one_of(st.just(CORRUPT), st.just(CORRUPT), VALUES),
        "edges": st.one_of(st.lists(st.sampled_from(EDGES), max_size=2), VALUES),
        "mask": st.one_of(VALUES, st.just(np.full((6, 4), np.nan)), st.just([[1]])),
        "head": st.one_of(st.just((0, 0)), VALUES, st.sampled_from([(a, 0) for a in NUMBERS])),
    },
)


@cache
def _patcher() -> OnnxPatcher:
    folder = Path(tempfile.mkdtemp(prefix="pahq-fuzz-"))
    for name, content in exported().items():
        (folder / name).write_bytes(content)
    patcher = OnnxPatcher(folder / "d.onnx", threads=1)
    assert patcher._heads is not None
    return patcher


def check_patcher(content: dict[str, Any], bench: Bench) -> None:
    """Arguments of a run: finite logits, or what is wrong with them."""
    logits = bench.call(_patcher().run, **content)
    holds(np.isfinite(logits).all() and logits.shape[-1] == 8, "logits")


def targets() -> list[Target]:
    """All readers of graphs."""
    files = exported()
    graphs = [files["0.json"], files["1.json"]]
    graph_json = st.one_of(written([json.loads(g) for g in graphs]), damaged_bytes(graphs))
    known = [description_of(files[name]) for name in ("d.onnx", "s.onnx")]
    described = [json_text(one).encode() for one in known]
    heads = files["d.heads.safetensors"]
    return [
        Target("graph-json", graph_json, check_graph_json, files=tuple(graphs)),
        Target("description", st.one_of(written(known), damaged_bytes(described)), check_description,
               files=tuple(described)),
        Target("heads", st.one_of(heads_files(), damaged_bytes([heads])), check_heads, files=(heads,)),
        Target("onnx", graph_files(), check_onnx, share=0.3, sample=30),
        Target("patcher", CALLS, check_patcher, share=0.5, sample=40),
    ]  # fmt: skip
