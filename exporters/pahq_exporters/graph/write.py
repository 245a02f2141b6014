"""Build a graph from a host model, and write it if a check accepts it.

1. Check the model, the precision and the options before anything is written.
2. Build the graph (`pahq_exporters.graph.dense`, `pahq_exporters.graph.sweep`).
3. Write to a temporary folder near the target, check, then rename all files into place or none.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pahq_exporters.description import METADATA_KEY, Description, Destination, GraphKind, HighKind
from pahq_plugin.errors import ConfigError, ExportError, one_line
from pahq_plugin.host import PatchableModel
from pahq_plugin.host.graph import block, kind, slot, sources
from pahq_plugin.models.checks import check_patchable, configuration_digest, model_digest
from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.policy import check_parts
from pahq_plugin.results.result import model_name
from pahq_plugin.system.files import installed_version

if TYPE_CHECKING:
    import onnx

DEFAULT = PrecisionConfig(low="fp8_e4m3", mlp="fp8_e4m3", activations="high")
"""One-byte weights, FP32 activations."""

EXTERNAL_FROM = 2**31 - 2**24
"""Bytes from which weights go into a separate file: a protobuf file holds at most 2 GiB."""


def export_if(
    accept: Callable[[Path], object] | None,
    model: PatchableModel,
    path: str | os.PathLike[str],
    graph: GraphKind = "dense",
    precision: PrecisionConfig | None = None,
    start_layer: int = 0,
    *,
    head: tuple[int, int] | None = None,
    positions: str = "all",
    external_data: bool | None = None,
) -> Path:
    """Write a graph; arguments and errors as in `pahq_exporters.export.export_onnx`.

    ``accept`` is called with the new file before it replaces the old one; if it raises, all files stay
    as they were.
    """
    require("onnx")
    from pahq_exporters.graph.parts import check_exportable

    check_patchable(model)
    check_exportable(model)
    precision = DEFAULT if precision is None else precision
    if not isinstance(precision, PrecisionConfig):
        raise ConfigError(f"precision={precision!r} must be a PrecisionConfig")
    check_parts(model.cfg, precision)
    if graph not in ("dense", "sweep"):
        raise ConfigError(f'graph={graph!r} must be "dense" or "sweep"')
    if type(start_layer) is not int or not 0 <= start_layer < model.cfg.n_layers:
        raise ConfigError(
            f"start_layer={start_layer!r} must be an integer between 0 and {model.cfg.n_layers - 1}"
        )
    if positions not in ("all", "model"):
        raise ConfigError(f'positions={positions!r} must be "all" or "model"')
    if model.seq_len is not None and graph == "sweep":
        raise ConfigError(
            f"graph='sweep' patches all positions, but the model has edges of single positions "
            f"(seq_len={model.seq_len}); use graph='dense'"
        )
    if head is not None and graph == "sweep":
        raise ConfigError("head= belongs to graph='dense'; a sweep graph tests the head of its edge")
    _check_formats(precision, model)
    target = Path(path)
    described = describe(model, graph, precision, start_layer, head, positions, target)
    try:
        if target.is_dir():
            raise ExportError(f"{target} is a folder; name a file, such as {target / 'graph.onnx'}")
        if target.suffix != ".onnx":
            raise ExportError(f"{target}: the name of a graph must end in .onnx")
        with torch.no_grad():
            proto = build(model, described, precision)
        _write(proto, model, described, target, external_data, accept)
    except OSError as error:
        raise ExportError(f"{target} cannot be written ({error.strerror or one_line(error)})") from None
    return target


def require(package: str) -> None:
    """Refuse to go on without a package, with an `ExportError`."""
    if find_spec(package) is None:
        raise ExportError(
            f"{package} is not installed; install the extra: pip install 'pahq-plugin[onnx]'"
        )


def _check_formats(precision: PrecisionConfig, model: PatchableModel) -> None:
    if precision.weights is not None:
        raise ConfigError("weights='int4': graphs hold weights in one byte; leave it out")
    for layer in range(model.cfg.n_layers):
        for part in ("scores", "values"):
            if precision.format_of(part, layer).is_low:
                raise ConfigError(f"graphs keep {part} in FP32; leave them out of parts and formats")
    if precision.policy == "hybrid" and not precision.formats:
        raise ConfigError(
            "policy='hybrid' chooses formats in a search; pass those of a result "
            "(result.settings['precision']['formats']) as formats="
        )


def describe(
    model: PatchableModel,
    graph: GraphKind,
    precision: PrecisionConfig,
    start_layer: int,
    head: tuple[int, int] | None,
    positions: str,
    target: Path,
) -> Description:
    """Describe the graph to build.

    Raises:
        GraphError: the graph has no such ``head``.
    """
    cfg, dests = model.cfg, _destinations(model)
    high = _chosen_by(graph, precision, range(start_layer, cfg.n_layers), head)
    # Heads of the first block read all sources before it.
    n_earlier = next(dest.reads for dest in dests if dest.layer == start_layer) if start_layer else 0
    described = Description(
        graph=graph,
        id="",
        source_model=model_name(model),
        source_digest=model_digest(model),
        source_configuration=configuration_digest(model),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        d_model=cfg.d_model,
        n_ctx=cfg.n_ctx,
        seq_len=model.seq_len,
        d_vocab=cfg.d_vocab,
        d_vocab_out=cfg.d_vocab_out,
        start_layer=start_layer,
        n_earlier=n_earlier,
        positions="all" if positions == "all" else _output_positions(model),
        high=high,
        fixed_head=None,
        sources=tuple(node.name for node in sources(model)),
        destinations=tuple(dest for dest in dests if dest.layer >= start_layer),
        precision=None if precision.is_exact else precision.record(),
        versions={
            name: installed_version(name) or "unknown"
            for name in ("pahq-plugin", "torch", "transformer-lens", "auto-circuit", "onnx")
        },
        heads_file=_heads_name(target) if high == "input" else None,
    )
    fixed = None if head is None else described.check_head(head)
    digest = hashlib.blake2b(described.to_json().encode(), digest_size=16).hexdigest()
    return replace(described, fixed_head=fixed, id=digest)


def _destinations(model: PatchableModel) -> list[Destination]:
    """Return all destinations in the order of a forward pass."""
    reads = {dest: 0 for dest in model.dests}
    for edge in model.edges:
        reads[edge.dest] = max(reads[edge.dest], edge.src.src_idx + 1)
    dests = [
        Destination(
            name=dest.name,
            layer=model.cfg.n_layers if kind(dest) == "output" else block(dest),
            slot=slot(dest) if kind(dest) == "head" else kind(dest),
            head=-1 if dest.head_idx is None else dest.head_idx,
            reads=count,
        )
        for dest, count in reads.items()
    ]
    order = {"q": 0, "k": 1, "v": 2, "attn": 0, "mlp": 3, "output": 4}
    return sorted(dests, key=lambda dest: (dest.layer, order[dest.slot], dest.head))


def _chosen_by(
    graph: GraphKind, precision: PrecisionConfig, layers: range, head: tuple[int, int] | None
) -> HighKind:
    """Return how the FP32 head is chosen: by an input, at export, or not at all."""
    if head is not None:
        return "fixed"
    low_heads = not precision.is_exact and any(
        precision.format_of(part, layer).is_low for part in ("qkv", "output") for layer in layers
    )
    by_input = graph == "sweep" or precision.policy not in ("uniform", "full")
    return "input" if low_heads and by_input else "none"


def _output_positions(model: PatchableModel) -> str:
    """Return the positions of the model's output slice, as in `Description.positions`."""
    if len(model.out_slice) == 1:
        return "all"
    chosen = model.out_slice[1]
    if chosen == -1:
        return "last"
    if chosen == slice(1, None):
        return "not_first"
    raise ExportError(f"no graph for the output slice {model.out_slice!r}; pass positions='all'")


def build(model: PatchableModel, described: Description, precision: PrecisionConfig) -> onnx.ModelProto:
    """Build the ONNX model."""
    from pahq_exporters.graph.builder import Builder, value_info
    from pahq_exporters.graph.dense import Dense
    from pahq_exporters.graph.sweep import Sweep
    from pahq_exporters.inputs import inputs, outputs

    if described.precision is None:
        precision = PrecisionConfig(low="fp32", mlp="fp32")
    builder = Builder()
    kind = Dense if described.graph == "dense" else Sweep
    for name, value in kind(builder, model, described, precision).fill().items():
        builder.rename(value, name)
    metadata = {METADATA_KEY: described.to_json()}
    first, last = ([value_info(value) for value in each(described)] for each in (inputs, outputs))
    return builder.model(f"pahq_{described.graph}", first, last, metadata)


def _write(
    proto: onnx.ModelProto,
    model: PatchableModel,
    described: Description,
    target: Path,
    external_data: bool | None,
    accept: Callable[[Path], object] | None,
) -> None:
    import onnx

    from pahq_exporters.runtime.heads import write_heads

    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    apart = size > EXTERNAL_FROM if external_data is None else external_data
    near = next(parent for parent in target.absolute().parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=near, prefix=".pahq-export-") as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        new.mkdir()
        old.mkdir()
        made = new / target.name
        if described.heads_file is not None:
            write_heads(model, described, new / described.heads_file)
        onnx.save_model(
            proto, str(made), save_as_external_data=apart, location=f"{target.name}.data",
            size_threshold=1024,
        )  # fmt: skip
        if accept is not None:
            accept(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        names = (_heads_name(target), f"{target.name}.data", target.name)
        _put_in_place(names, new, target.parent, old)


def _put_in_place(names: Sequence[str], new: Path, place: Path, old: Path) -> None:
    """Move the named files from ``new`` to ``place``, in order, and existing ones to ``old``; if a move
    fails, undo all."""
    made = {name for name in names if (new / name).exists()}
    try:
        for name in names:
            if (place / name).is_file():
                os.replace(place / name, old / name)
            if name in made:
                os.replace(new / name, place / name)
    except BaseException:
        for name in names:
            if (old / name).exists():
                os.replace(old / name, place / name)
            elif name in made and not (new / name).exists():
                (place / name).unlink()
        raise


def _heads_name(target: Path) -> str:
    """Return the name of the file of FP32 heads beside a graph."""
    return f"{target.stem}.heads.safetensors"
