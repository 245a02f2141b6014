"""The command ``pahq``: discover a circuit, show a saved one, look at this machine.

Every command prints tables for people, or with ``--json`` one JSON document on standard output.
Errors are one line on standard error and an exit code other than 0; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from pahq_plugin import completion as known
from pahq_plugin.early import (
    CHECKPOINT,
    CHECKPOINT_EVERY,
    DEFAULT_THRESHOLD,
    check_folder,
    check_problem,
    how_to_go_on,
)
from pahq_plugin.errors import ConfigError
from pahq_plugin.launch import launched
from pahq_plugin.notices import never_fail_printing
from pahq_plugin.report.command import compare
from pahq_plugin.terminal import (
    Ablation,
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
    complain,
    flags_given,
    one_line_errors,
    print_json,
    print_result,
)

app = typer.Typer(
    name="pahq",
    help="Find circuits in transformers by patching, screened in mixed precision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pahq_plugin.files import installed_version

        typer.echo(f"pahq-plugin {installed_version('pahq-plugin')}")
        raise typer.Exit()


@app.callback()
def everywhere(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Find circuits in transformers by patching, screened in mixed precision."""


@app.command()
def discover(
    context: typer.Context,
    problem: Annotated[str, known.argument(known.PROBLEMS, "A bundled problem, for example ioi.")],
    model: Model = None,
    prompts: Prompts = None,
    method: Annotated[str, known.option(known.METHODS, "pahq, acdc, eap, ... or a host key.")] = "pahq",
    threshold: Annotated[float, typer.Option(help="Edges of a smaller effect go.")] = DEFAULT_THRESHOLD,
    metric: Annotated[
        str | None, known.option(known.METRICS, "kl_div, mse or logit_diff; default: the problem's own.")
    ] = None,
    ablation: Ablation = "resample",
    engine: Annotated[str, known.option(known.ENGINES, "auto, incremental, host or onnx.")] = "auto",
    low: Annotated[str | None, known.option(known.FORMATS, "Number format of heads.")] = None,
    mlp: Annotated[str | None, known.option(known.FORMATS, "Number format of MLPs.")] = None,
    scale: Annotated[str | None, known.option(known.SCALES, "row, head, tensor or none.")] = None,
    policy: Annotated[str | None, known.option(known.POLICIES, "Which parts stay in FP32.")] = None,
    parts: Annotated[
        str | None,
        known.list_option(known.PARTS, "What --low applies to: qkv,output,scores,values,unembed."),
    ] = None,
    weights: Annotated[
        str | None, known.option(("int4",), "int4: weights of int8 parts in 4 bits.")
    ] = None,
    activations: Annotated[
        str | None, known.option(("high", "low"), "high: round weights only.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Error budget of --policy hybrid.")] = None,
    guard: Annotated[str | None, typer.Option(help="auto, or a number; inf re-decides all.")] = None,
    kernel: Annotated[str | None, known.option(known.KERNELS, "auto, eager or native products.")] = None,
    batches: Annotated[int, typer.Option(help="Loader batches to average over; 0 for all.")] = 1,
    batch_size: BatchSize = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")
    ] = None,
    n_edges: Annotated[int | None, typer.Option(help="Circuit size of score methods.")] = None,
    positional: Positional = False,
    bos: Bos = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts and of the search.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to go on from; default: one in the --out folder.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between two writes.", min=0)
    ] = CHECKPOINT_EVERY,
    max_memory: Annotated[
        str | None,
        typer.Option(help="What a search may take, for example 8GB; the rest comes from disk."),
    ] = None,
    out: Out = None,
    force: Force = False,
    top: Top = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the circuit of PROBLEM and print its strongest edges."""
    with one_line_errors(debug, how_to_go_on(checkpoint, out)), launched() as world:
        check_folder(out, force)
        check_problem(problem, prompts)
        if batches < 0:
            raise ConfigError(f"--batches={batches} must be 0 (all batches) or a number above 0")
        from pahq_plugin.catalogue import get_method
        from pahq_plugin.discovery import discover as run
        from pahq_plugin.progress import say
        from pahq_plugin.zoo import load_problem

        uses = get_method(method).uses
        _refuse_unused(context, method, uses)
        loaded = load_problem(
            problem,
            model=model,
            prompts=prompts,
            batch_size=batch_size,
            seed=seed,
            positional=positional,
            device=device,
            on_disk=max_memory is not None,
            bos=bos,
        )
        say(loaded.note, shown=bool(loaded.note) and world.is_first and not as_json)
        whole = len(loaded.train_loader)
        if prompts is not None and 0 < batches < whole:
            size = loaded.train_loader.batch_size
            say(
                f"taking {batches} of {whole} batches of {size}; --batches 0 takes all",
                shown=world.is_first and not as_json,
            )
        own = out / CHECKPOINT if out is not None and "checkpoint" in uses else None
        result = run(
            loaded.model,
            loaded.train_loader,
            method=method,
            threshold=threshold,
            metric=metric or (loaded.metric if "metric" in uses else None),
            ablation=ablation,
            precision=_precision(
                loaded.model,
                low=low,
                mlp=mlp,
                scale=scale,
                policy=policy,
                parts=None if parts is None else tuple(filter(None, parts.split(","))),
                weights=weights,
                activations=activations,
                budget=budget,
                guard=_guard(guard),
                kernel=kernel,
            ),
            engine=engine,
            batches=batches or None,
            true_edges=loaded.true_edges if "true_edges" in uses else None,
            n_edges=n_edges,
            checkpoint=checkpoint or own,
            progress=not as_json,
            seed=seed,
            checkpoint_every=checkpoint_every,
            max_memory=max_memory,
        )
        if not world.is_first:
            return
        if out is not None:
            result.save(out, force=force)
            if own is not None and checkpoint is None:
                own.unlink(missing_ok=True)
        from dataclasses import asdict

        print_result(result.record(), asdict(result.stats), top, as_json, saved=out)


@app.command()
def show(
    result: Annotated[Path, typer.Argument(help="Folder of a saved result.")],
    html: Annotated[Path | None, typer.Option(help="Write an interactive picture, a web page.")] = None,
    dot: Annotated[str | None, typer.Option(help="Write a Graphviz file; - prints it.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Folder of another result: what differs, or both in the picture.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write README.md, a Hugging Face model card, beside it.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="Of the card, such as mit.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Of the card: the hub's owner/name.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the picture in a browser.")] = False,
    force: Force = False,
    top: Top = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a saved result, or draw it; the model is not loaded."""
    with one_line_errors(debug):
        from pahq_plugin.records import read_record, read_stats, result_file
        from pahq_plugin.report.drawing import Drawing, difference_of
        from pahq_plugin.tables import print_view

        drawing = Drawing(html=html, dot=dot, compare=compare, show=open_page, force=force)
        drawing.check(as_json)
        if card:
            if as_json:
                raise ConfigError("--json prints the result; leave out --card")
            from pahq_plugin.card import write_card

            folder = result_file(result).parent
            made = write_card(folder, license=license, base_model=base_model, force=force)
            typer.echo(f"wrote {made}")
            if not drawing.wanted and compare is None:
                return None
        elif license or base_model:
            raise ConfigError("--license and --base-model are of the card; add --card")
        if drawing.wanted:
            return drawing.write(result, say=typer.echo)
        if compare is not None:
            return print_view(difference_of(result, compare).shown(top))
        file = result_file(result)
        print_result(read_record(file), read_stats(file.parent), top, as_json)


app.command()(compare)


@app.command()
def store(
    model: Annotated[str, typer.Argument(help="A TransformerLens model name, for example gpt2.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write it to.")],
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write MODEL as one file a block, which discover opens without reading it whole.

    pahq discover ioi --model FOLDER --max-memory 8GB
    """
    with one_line_errors(debug):
        from pahq_plugin.zoo.problems import store_model

        nbytes = store_model(model, folder, force)
        if as_json:
            print_json({"folder": str(folder), "bytes": nbytes})
        else:
            typer.echo(f"{nbytes / 1e6:,.0f} MB in {folder}; use it with: --model {folder}")


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what is installed, which number formats are fast here, and what is missing."""
    with one_line_errors(debug):
        from pahq_plugin.doctor import examine
        from pahq_plugin.tables import print_examination

        found = examine()
        if as_json:
            print_json(found)
        else:
            print_examination(found)


@app.command()
def schema(
    command: Annotated[str, known.argument(known.WITH_JSON, "A command that has --json.")],
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of what COMMAND prints with --json."""
    with one_line_errors(debug):
        from pahq_plugin.schemas import schema_text

        typer.echo(schema_text(command), nl=False)


def main() -> None:
    """Entry point of the console script; a foreign command that is broken does not break the others."""
    from importlib.metadata import entry_points

    from pahq_plugin.plugins import COMMANDS, load

    # OpenMP's threads wait for each other in a loop; where other processes want the cores, a search of
    # small products then took 3 to 40 times as long. Read when PyTorch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    never_fail_printing()
    for entry in entry_points(group=COMMANDS):
        try:
            app.command(entry.name)(load(entry))
        except ConfigError as error:
            complain(f"warning: {error}", style="yellow")
    app()


OPTIONS = {
    "precision": (
        "low", "mlp", "scale", "policy", "parts", "weights", "activations", "budget", "guard", "kernel",
    ),
    "checkpoint": ("checkpoint", "checkpoint_every"),
    **{name: (name,) for name in ("threshold", "metric", "ablation", "engine", "n_edges", "max_memory")},
}  # fmt: skip
"""Options of `discover` by the argument that they make, where not every method uses it."""


def _refuse_unused(context: typer.Context, method: str, uses: Collection[str]) -> None:
    """
    Raises:
        ConfigError: an option was given that the method cannot use.
    """
    useless = [option for name, options in OPTIONS.items() if name not in uses for option in options]
    given = flags_given(context, useless)
    if given:
        others = [option for name, options in OPTIONS.items() if name in uses for option in options]
        usable = ", ".join(sorted(f"--{option.replace('_', '-')}" for option in others))
        raise ConfigError(f"method {method!r} cannot use {', '.join(given)}; it uses {usable}")


def _precision(model: Any, **flags: Any) -> Any:
    """The device's default precision with the given flags changed; ``None`` if none is given."""
    changes = {name: value for name, value in flags.items() if value is not None}
    if not changes:
        return None
    from dataclasses import replace

    from pahq_plugin.backend import model_device
    from pahq_plugin.config import default_precision

    return replace(default_precision(model_device(model)), **changes)


def _guard(text: str | None) -> str | float | None:
    """``auto`` or a number.

    Raises:
        ConfigError: neither.
    """
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--guard {text!r} must be auto or a number, for example 0.3") from None
