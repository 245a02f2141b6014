"""``pahq export``, ``pahq import`` and ``pahq run``, registered as entry points ``pahq.commands``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pahq_plugin import choices
from pahq_plugin.cli import options as known
from pahq_plugin.cli.early import check_folder, check_problem
from pahq_plugin.cli.options import (
    BatchSize,
    Bos,
    Debug,
    Force,
    Json,
    Model,
    Out,
    Positional,
    Prompts,
    Top,
    flags_given,
)
from pahq_plugin.cli.output import one_line_errors, print_json, print_result
from pahq_plugin.errors import ConfigError, ResultError

if TYPE_CHECKING:
    from pahq_plugin.host import PatchableModel, PromptDataLoader


OF_GRAPHS = (
    "graph", "low", "mlp", "scale", "activations", "policy", "head", "start_layer", "positions", "check",
    "ids",
)  # fmt: skip
"""Options that only apply to graphs, not to circuits."""


def export(
    context: typer.Context,
    problem: Annotated[str, known.argument(choices.PROBLEMS, "Problem whose model to export.")],
    path: Annotated[Path, typer.Argument(help="File to write: .onnx, or .json with --result.")],
    model: Model = None,
    prompts: Prompts = None,
    batch_size: BatchSize = None,
    positional: Positional = False,
    bos: Bos = None,
    graph: Annotated[
        str, known.option(("dense", "sweep"), "dense: sets of edges; sweep: single edges.")
    ] = "dense",
    low: Annotated[str, known.option(choices.FORMATS, "Number format of heads.")] = "fp8_e4m3",
    mlp: Annotated[
        str | None, known.option(choices.FORMATS, "Number format of MLPs; default: --low.")
    ] = None,
    scale: Annotated[str, known.option(choices.SCALES, "row, head, tensor or none.")] = "row",
    activations: Annotated[
        str, known.option(("high", "low"), "high; low rounds activations, too.")
    ] = "high",
    policy: Annotated[
        str,
        known.option(
            (*choices.POLICIES[:1], *choices.POLICIES[2:4]), "investigated_head, uniform or full."
        ),
    ] = "investigated_head",
    head: Annotated[str | None, typer.Option(help="LAYER.HEAD to keep in FP32.")] = None,
    start_layer: Annotated[int, typer.Option(help="First block of the graph.")] = 0,
    positions: Annotated[
        str, known.option(("all", "model"), "Logits at all positions, or at the model's.")
    ] = "all",
    check: Annotated[bool, typer.Option("--check", help="Validate, and compare with PyTorch.")] = False,
    result: Annotated[
        Path | None, typer.Option(help="Saved result: write its circuit as EAP-IG graph JSON.")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Also write the prompts as token ids for pahq run.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write PROBLEM's model as an ONNX graph, or a result's circuit as graph JSON."""
    with one_line_errors(debug):
        for file in (path, ids):
            if file is not None and file.is_file() and not force:
                raise ConfigError(f"{file} exists already; pass --force to replace it")
        useless = [] if result is None else flags_given(context, OF_GRAPHS)
        if useless:
            raise ConfigError(
                f"{', '.join(useless)} cannot be combined with --result; leave out one of them"
            )
        check_problem(problem, prompts)
        _check_ending(path, result is not None)
        from pahq_exporters.graph.write import export_if
        from pahq_exporters.run import parse_head
        from pahq_plugin import PrecisionConfig, load_problem
        from pahq_plugin.system.progress import say

        chosen = None if head is None else parse_head(head)
        if head is not None and not isinstance(chosen, tuple):
            raise ConfigError(f"--head {head!r} must be LAYER.HEAD, for example 2.7")
        precision = PrecisionConfig(
            low=low, mlp=mlp or low, scale=scale, activations=activations, policy=policy  # type: ignore[arg-type]
        )  # fmt: skip
        loaded = load_problem(
            problem, model=model, prompts=prompts, batch_size=batch_size, positional=positional, bos=bos
        )
        say(loaded.note, shown=bool(loaded.note) and not as_json)
        if result is not None:
            _write_circuit(result, loaded.model, path, as_json)
            return
        lines: list[str] = []

        def accept(made: Path) -> None:
            from pahq_exporters.check import check as check_file

            lines.extend(check_file(made, loaded.model, loaded.train_loader))

        options = {"start_layer": start_layer, "head": chosen, "positions": positions}
        written = export_if(
            accept if check else None, loaded.model, path, graph, precision, **options  # type: ignore[arg-type]
        )  # fmt: skip
        found: dict[str, object] = {"file": str(written), "bytes": written.stat().st_size}
        found |= {"check": lines} if check else {}
        if ids is not None:
            _write_ids([loaded.train_loader, loaded.test_loader], ids)
            found["ids"] = str(ids)
        if as_json:
            print_json(found)
            return
        typer.echo(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")
        for line in lines:
            typer.echo(f"  {line}")
        if ids is not None:
            typer.echo(f"wrote {ids}; try: pahq run {written} --prompts {ids} --all")


def _write_ids(loaders: Sequence[PromptDataLoader], path: Path) -> None:
    """Write the prompts of all ``loaders`` as token ids, in the host's JSON format.

    Answers that are not token ids at one position, as in Tracr problems, are left out: `pahq run` could
    not read them.
    """
    from pahq_plugin.system.files import write_text

    prompts = []
    for batch in chain(*loaders):
        columns = {
            name: [row.tolist() for row in getattr(batch, name)]
            for name in ("clean", "corrupt", "answers", "wrong_answers")
        }
        if not all(type(token) is int for row in columns["answers"] for token in row):
            del columns["answers"], columns["wrong_answers"]
        prompts += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_text(path, json.dumps({"prompts": prompts}) + "\n")


def _check_ending(path: Path, is_circuit: bool) -> None:
    """Refuse a path that is a folder, or whose suffix does not match what will be written."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file, such as {path / 'graph.onnx'}")
    if is_circuit and path.suffix != ".json":
        raise ConfigError(f"{path}: with --result a circuit is written as JSON; name a .json file")
    if not is_circuit and path.suffix == ".json":
        raise ConfigError(
            f"{path}: a .json file holds a circuit; pass --result FOLDER, or name a .onnx file"
        )
    if not is_circuit and path.suffix != ".onnx":
        raise ConfigError(f"{path}: the name of a graph must end in .onnx")


def _write_circuit(result: Path, model: PatchableModel, path: Path, as_json: bool) -> None:
    """Write the circuit of a saved result as graph JSON, and print where."""
    from pahq_exporters.interchange.graph_json import write_graph_json
    from pahq_plugin import Discovery

    found = Discovery.load(result, model)
    write_graph_json(found, path)
    if as_json:
        print_json({"file": str(path), "edges": len(found.circuit)})
    else:
        typer.echo(f"wrote {path} ({len(found.circuit)} of {len(found.decisions)} edges in the graph)")


def import_graph(
    problem: Annotated[str, known.argument(choices.PROBLEMS, "Problem whose model the graph is of.")],
    graph: Annotated[Path, typer.Argument(help="A JSON graph of EAP-IG or the MIB circuit track.")],
    model: Model = None,
    prompts: Prompts = None,
    n_edges: Annotated[
        int | None,
        typer.Option(help="Keep the N largest scores; default: edges marked in_graph.", min=1),
    ] = None,
    out: Out = None,
    force: Force = False,
    top: Top = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Import a circuit of EAP-IG or MIB as a result: print it, and save it for show and export."""
    with one_line_errors(debug):
        check_folder(out, force)
        check_problem(problem, prompts)
        if not graph.exists():
            raise ResultError(f"no file at {graph}; expected a JSON graph")
        from pahq_exporters.interchange.graph_json import read_graph_json
        from pahq_plugin import load_problem

        loaded = load_problem(problem, model=model, prompts=prompts)
        result = read_graph_json(graph, loaded.model).discovery(loaded.model, n_edges)
        if out is not None:
            result.save(out, force=force)
        print_result(result.record(), asdict(result.stats), top, as_json, saved=out)


def run(
    graph: Annotated[Path, typer.Argument(help="A file written by pahq export.")],
    prompts: Annotated[Path, typer.Option(help="Token ids in the host's JSON format.")],
    edges: Annotated[
        list[str] | None, typer.Option(help='An edge, such as "A0.1->MLP 2"; may be repeated.')
    ] = None,
    all_edges: Annotated[bool, typer.Option("--all", help="Patch every edge, each alone.")] = False,
    each: Annotated[bool, typer.Option(help="Patch each edge alone, not all together.")] = False,
    result: Annotated[
        Path | None, typer.Option(help="Folder of a saved result: patch all edges outside its circuit.")
    ] = None,
    head: Annotated[str, typer.Option(help="Head in FP32: auto, none or LAYER.HEAD.")] = "auto",
    limit: Annotated[int | None, typer.Option(help="Number of prompts to use.", min=1)] = None,
    mode: Annotated[
        str, known.option(("speed", "memory"), "speed; memory keeps one byte per weight.")
    ] = "speed",
    provider: Annotated[
        list[str] | None, known.option(("cpu", "cuda", "tensorrt"), "cpu, cuda or tensorrt.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per operation.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Patch edges of an exported graph in ONNX Runtime."""
    with one_line_errors(debug):
        from pahq_exporters import run as runner

        found = runner.run(
            graph,
            prompts,
            edges or [],
            all_edges=all_edges,
            each=each,
            result=result,
            head=head,
            limit=limit,
            mode=mode,
            providers=provider,
            threads=threads,
        )
        if as_json:
            print_json(found)
        else:
            typer.echo(runner.table(found))
