"""Options that several commands have, and options whose values the shell completes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pahq_plugin import choices

Completer = Callable[[str], list[str]]


def one_of(*names: str) -> Completer:
    """Completes one name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def several_of(*names: str) -> Completer:
    """Completes the last of names separated by commas, none of them twice."""

    def complete(incomplete: str) -> list[str]:
        *before, last = incomplete.split(",")
        start = "".join(f"{name}," for name in before)
        return [start + name for name in names if name.startswith(last) and name not in before]

    return complete


def option(choices: Sequence[str], help: str) -> Any:
    """An option that takes one of ``choices``, or what else the command may know."""
    return typer.Option(help=help, autocompletion=one_of(*choices))


def argument(choices: Sequence[str], help: str) -> Any:
    """The same as an argument."""
    return typer.Argument(help=help, autocompletion=one_of(*choices))


def list_option(choices: Sequence[str], help: str) -> Any:
    """An option that takes several, separated by commas."""
    return typer.Option(help=help, autocompletion=several_of(*choices))


Model = Annotated[
    str | None,
    typer.Option(help="A TransformerLens name, or a folder (Hugging Face's, or of pahq store)."),
]


Prompts = Annotated[Path | None, typer.Option(help="Your prompts, a host JSON file.")]


BatchSize = Annotated[int | None, typer.Option(help="Prompts per batch.")]


Bos = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Begin text prompts with BOS; default: as the model says."),
]


Positional = Annotated[bool, typer.Option(help="Edges at each token position.")]


Ablation = Annotated[str, option(choices.ABLATIONS, "What a patched edge carries.")]


Out = Annotated[Path | None, typer.Option(help="Folder to save the result in.")]


Force = Annotated[bool, typer.Option(help="Replace what is there already.")]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


Top = Annotated[int, typer.Option(help="How many of the strongest edges to list.", min=0)]


def flags_given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """The flags of those parameters that the command line sets."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]
