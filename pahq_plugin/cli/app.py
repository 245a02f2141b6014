"""The command ``pahq``: discover a circuit, show a saved one, examine this machine.

Every command prints tables, or with ``--json`` one JSON document, on standard output. An error is one
line on standard error and a non-zero exit code; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pahq_plugin import choices
from pahq_plugin.cli import options
from pahq_plugin.cli.compare import compare
from pahq_plugin.cli.discover import discover
from pahq_plugin.cli.output import complain, one_line_errors, print_examination, print_json
from pahq_plugin.cli.show import show
from pahq_plugin.errors import ConfigError
from pahq_plugin.system.warn import never_fail_printing

app = typer.Typer(
    name="pahq",
    help="Find circuits in transformers by activation patching in mixed precision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pahq_plugin.system.files import installed_version

        typer.echo(f"pahq-plugin {installed_version('pahq-plugin')}")
        raise typer.Exit()


@app.callback()
def everywhere(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Find circuits in transformers by activation patching in mixed precision."""


for command in (discover, show, compare):
    app.command()(command)


@app.command()
def store(
    model: Annotated[str, typer.Argument(help="A TransformerLens model name, for example gpt2.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write MODEL with one file per block, so that discover need not read all of it at once.

    pahq discover ioi --model FOLDER --max-memory 8GB
    """
    with one_line_errors(debug):
        from pahq_plugin.problems.load import store_model

        nbytes = store_model(model, folder, force)
        if as_json:
            print_json({"folder": str(folder), "bytes": nbytes})
        else:
            typer.echo(f"{nbytes / 1e6:,.0f} MB in {folder}; use it with: --model {folder}")


@app.command()
def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show what is installed, which number formats are fast here, and what is missing."""
    with one_line_errors(debug):
        from pahq_plugin.cli.doctor import examine

        found = examine()
        if as_json:
            print_json(found)
        else:
            print_examination(found)


@app.command()
def schema(
    command: Annotated[str, options.argument(choices.WITH_JSON, "A command that has --json.")],
    debug: options.Debug = False,
) -> None:
    """Print the JSON Schema of COMMAND's output with --json."""
    with one_line_errors(debug):
        from pahq_plugin.cli.schemas import schema_text

        typer.echo(schema_text(command), nl=False)


def main() -> None:
    """Run the command line; a broken command of another package does not break the others."""
    from importlib.metadata import entry_points

    from pahq_plugin.system.plugins import COMMANDS, load

    # OpenMP's threads busy-wait for each other by default; where other processes wanted the cores, a
    # search with small products took 3 to 40 times as long. PyTorch, imported later, reads this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    never_fail_printing()
    for entry in entry_points(group=COMMANDS):
        try:
            app.command(entry.name)(load(entry))
        except ConfigError as error:
            complain(f"warning: {error}", style="yellow")
    app()
