"""Options that several commands share, and options whose values the shell completes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pahq_plugin import choices

Completer = Callable[[str], list[str]]


def one_of(names: Sequence[str]) -> Completer:
    """Return a completer for one name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def several_of(names: Sequence[str]) -> Completer:
    """Return a completer for the last of several comma-separated names, without duplicates."""

    def complete(incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        start = "".join(f"{name}," for name in before)
        return [start + name for name in names if name.startswith(last) and name not in before]

    return complete


def option(choices: Sequence[str], help: str) -> Any:
    """Return an option completed from ``choices``; the command may accept other values, too."""
    return typer.Option(help=help, autocompletion=one_of(choices))


def argument(choices: Sequence[str], help: str) -> Any:
    """Return an argument completed from ``choices``; the command may accept other values, too."""
    return typer.Argument(help=help, autocompletion=one_of(choices))


def list_option(choices: Sequence[str], help: str) -> Any:
    """Return an option that takes several ``choices``, separated by commas."""
    return typer.Option(help=help, autocompletion=several_of(choices))


Model = Annotated[
    str | None,
    typer.Option(help="A TransformerLens name, or a folder (Hugging Face's or pahq store's)."),
]
Prompts = Annotated[
    Path | None, typer.Option(help="Your own prompts: a file in the host's JSON format.")
]
BatchSize = Annotated[int | None, typer.Option(help="Prompts per batch.")]
Bos = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Begin text prompts with BOS; default: the model's setting."),
]
Positional = Annotated[bool, typer.Option(help="Separate edges for each token position.")]
Ablation = Annotated[str, option(choices.ABLATIONS, "Value that a patched edge carries.")]
Out = Annotated[Path | None, typer.Option(help="Folder to save the result in.")]
Force = Annotated[bool, typer.Option(help="Replace existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Top = Annotated[int, typer.Option(help="How many of the strongest edges to list.", min=0)]


def flags_given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return the flags among ``names`` that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]
