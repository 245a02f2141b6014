"""``pahq export``, ``pahq import`` and ``pahq run``, found through entry points ``pahq.commands``."""

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
"""Options that say nothing of a circuit."""


def export(
    context: typer.Context,
    problem: Annotated[str, known.argument(choices.PROBLEMS, "A problem whose model to export.")],
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
        str | None, known.option(choices.FORMATS, "Number format of MLPs; default: that of heads.")
    ] = None,
    scale: Annotated[str, known.option(choices.SCALES, "row, head, tensor or none.")] = "row",
    activations: Annotated[
        str, known.option(("high", "low"), "high, or low: round activations, too.")
    ] = "high",
    policy: Annotated[
        str,
        known.option(
            (*choices.POLICIES[:1], *choices.POLICIES[2:4]), "investigated_head, uniform or full."
        ),
    ] = "investigated_head",
    head: Annotated[str | None, typer.Option(help="LAYER.HEAD that is in FP32 for good.")] = None,
    start_layer: Annotated[int, typer.Option(help="Block that the graph starts with.")] = 0,
    positions: Annotated[
        str, known.option(("all", "model"), "all, or model: where its output slice looks.")
    ] = "all",
    check: Annotated[bool, typer.Option("--check", help="Compare with PyTorch, and validate.")] = False,
    result: Annotated[
        Path | None, typer.Option(help="Saved result whose circuit to write, as EAP-IG graph JSON.")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Write the prompts, too, as token ids for pahq run.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the model of PROBLEM as an ONNX graph, or a result's circuit as graph JSON."""
    with one_line_errors(debug):
        for file in (path, ids):
            if file is not None and file.is_file() and not force:
                raise ConfigError(f"{file} is there already; pass --force to replace it")
        useless = [] if result is None else flags_given(context, OF_GRAPHS)
        if useless:
            raise ConfigError(f"{', '.join(useless)} goes with a graph; leave out --result")
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
    """The prompts of all ``loaders`` as token ids, a host JSON file.

    Answers are left out where they are no tokens of one position, as in Tracr problems: `pahq run` could
    not read them.
    """
    from pahq_plugin.system.files import write_text

    prompts = []
    for batch in chain(*loaders):
        fields = {
            name: getattr(batch, name) for name in ("clean", "corrupt", "answers", "wrong_answers")
        }
        columns = {
            name: column.tolist() if hasattr(column, "tolist") else [row.tolist() for row in column]
            for name, column in fields.items()
        }
        if not all(type(token) is int for row in columns["answers"] for token in row):
            del columns["answers"], columns["wrong_answers"]
        prompts += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_text(path, json.dumps({"prompts": prompts}) + "\n")


def _check_ending(path: Path, is_circuit: bool) -> None:
    """
    Raises:
        ConfigError: the file's name does not say what will be written to it, or it is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file, such as {path / 'graph.onnx'}")
    if is_circuit and path.suffix != ".json":
        raise ConfigError(f"{path}: with --result a circuit is written as JSON; name a .json file")
    if not is_circuit and path.suffix == ".json":
        raise ConfigError(
            f"{path}: a .json file takes a circuit; pass --result FOLDER, or name a .onnx file"
        )
    if not is_circuit and path.suffix != ".onnx":
        raise ConfigError(f"{path}: name a file that ends in .onnx")


def _write_circuit(result: Path, model: PatchableModel, path: Path, as_json: bool) -> None:
    """
    Raises:
        ResultError: no such result, or one of another model.
    """
    from pahq_exporters.interchange.graph_json import write_graph_json
    from pahq_plugin import Discovery

    found = Discovery.load(result, model)
    write_graph_json(found, path)
    if as_json:
        print_json({"file": str(path), "edges": len(found.circuit)})
    else:
        typer.echo(f"wrote {path} ({len(found.circuit)} of {len(found.decisions)} edges in the graph)")


def import_graph(
    problem: Annotated[str, known.argument(choices.PROBLEMS, "A problem whose model the graph is of.")],
    graph: Annotated[Path, typer.Argument(help="A JSON graph of EAP-IG or the MIB circuit track.")],
    model: Model = None,
    prompts: Prompts = None,
    n_edges: Annotated[
        int | None, typer.Option(help="Keep the N largest scores; default: the edges in_graph.", min=1)
    ] = None,
    out: Out = None,
    force: Force = False,
    top: Top = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a circuit of EAP-IG or MIB as a result: print it, and save it for show and export."""
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
    prompts: Annotated[Path, typer.Option(help="A host JSON file of token ids.")],
    edges: Annotated[
        list[str] | None, typer.Option(help='Such as "A0.1->MLP 2"; may be repeated.')
    ] = None,
    all_edges: Annotated[bool, typer.Option("--all", help="Every edge, each alone.")] = False,
    each: Annotated[bool, typer.Option(help="Each edge alone instead of all together.")] = False,
    result: Annotated[
        Path | None, typer.Option(help="Folder of a saved result: patch all but its circuit.")
    ] = None,
    head: Annotated[str, typer.Option(help="auto, none or LAYER.HEAD: the head in FP32.")] = "auto",
    limit: Annotated[int | None, typer.Option(help="How many prompts to take.", min=1)] = None,
    mode: Annotated[
        str, known.option(("speed", "memory"), "speed, or memory: one byte a weight.")
    ] = "speed",
    provider: Annotated[
        list[str] | None, known.option(("cpu", "cuda", "tensorrt"), "cpu, cuda or tensorrt.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one operation.")] = None,
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
