"""The command ``pahq show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pahq_plugin.cli import options
from pahq_plugin.cli.output import one_line_errors, print_result
from pahq_plugin.errors import ConfigError
from pahq_plugin.results.terminal import print_view


def show(
    result: Annotated[Path, typer.Argument(help="Folder of a saved result.")],
    html: Annotated[
        Path | None, typer.Option(help="Write an interactive drawing as a web page.")
    ] = None,
    dot: Annotated[str | None, typer.Option(help="Write a Graphviz file; - prints it.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Folder of another result: print the difference, or draw both.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write README.md, a Hugging Face model card, to the folder.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="Licence on the card, such as mit.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Model on the card: owner/name.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the drawing in a browser.")] = False,
    force: options.Force = False,
    top: options.Top = 20,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print or draw a saved result, without loading the model."""
    with one_line_errors(debug):
        from pahq_plugin.results.card import write_card
        from pahq_plugin.results.drawing.write import Drawing, difference_of
        from pahq_plugin.results.files import read_record, read_stats, result_file

        drawing = Drawing(html=html, dot=dot, compare=compare, show=open_page, force=force)
        drawing.check(as_json)
        if card:
            if as_json:
                raise ConfigError("--json prints the result; leave out --card")
            folder = result_file(result).parent
            made = write_card(folder, license=license, base_model=base_model, force=force)
            typer.echo(f"wrote {made}")
            if not drawing.wanted and compare is None:
                return None
        elif license or base_model:
            raise ConfigError("--license and --base-model belong to a card; add --card")
        if drawing.wanted:
            return drawing.write(result, say=typer.echo)
        if compare is not None:
            return print_view(difference_of(result, compare).shown(top))
        file = result_file(result)
        print_result(read_record(file), read_stats(file.parent), top, as_json)
