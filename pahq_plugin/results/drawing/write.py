"""Files of ``pahq show``: a page and a Graphviz file of one result, or a page of two side by side."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pahq_plugin.errors import ConfigError, ResultError
from pahq_plugin.results.decision import saved_decisions
from pahq_plugin.results.difference import Difference, difference
from pahq_plugin.results.drawing.circuit_graph import circuit_data, graph_page
from pahq_plugin.results.drawing.dot import circuit_dot
from pahq_plugin.results.files import read_record, result_file
from pahq_plugin.system.files import write_text
from pahq_plugin.system.warn import warn

STANDARD_OUTPUT = "-"


@dataclass(frozen=True)
class Drawing:
    """What to draw, and where to write it.

    Attributes:
        html: file for the page.
        dot: file for the Graphviz text, or ``-`` for standard output.
        compare: another result, for the page or the terminal.
        show: whether to open the page in a browser, from a temporary file if `html` is ``None``.
        force: whether to replace existing files.
    """

    html: Path | None = None
    dot: str | None = None
    compare: Path | None = None
    show: bool = False
    force: bool = False

    @property
    def wanted(self) -> bool:
        """Whether there is anything to draw."""
        return self.show or self.html is not None or self.dot is not None

    def check(self, as_json: bool) -> None:
        """Refuse options that contradict each other.

        Raises:
            ConfigError: contradictory options, or a file that exists already.
        """
        if as_json and self.wanted:
            raise ConfigError("--json prints the result; leave out --html, --dot and --open")
        if self.dot == STANDARD_OUTPUT and (self.show or self.html):
            raise ConfigError("--dot - prints the graph alone; name a file beside --html or --open")
        if self.compare is not None and self.dot is not None and not (self.show or self.html):
            raise ConfigError(
                "--dot writes one circuit; leave out --compare, or add --html FILE or --open"
            )
        if self.compare is not None and as_json:
            raise ConfigError("--json prints one result; leave out --compare")
        if self.html is not None and self.html == self._dot_file():
            raise ConfigError(f"--html and --dot are both {self.html}; name two files")
        for file in (self.html, self._dot_file()):
            if file is None:
                continue
            if file.is_dir():
                raise ConfigError(f"{file} is a folder; name a file")
            if file.exists() and not self.force:
                raise ConfigError(f"{file} exists already; pass --force to replace it")

    def write(self, result: Path, say: Callable[[str], None]) -> None:
        """Draw the result, and report each file that was written through ``say``."""
        record = read_record(result_file(result))
        if self.html is not None or self.show:
            page = self.html or Path(tempfile.mkdtemp(prefix="pahq-")) / "circuit.html"
            write_text(page, encodable(self._page(record, result)))
            say(f"wrote {page}")
            if self.show and not webbrowser.open(page.absolute().as_uri()):
                say(f"no browser was found; open {page} in one")
        if self.dot is None:
            return
        text, file = encodable(circuit_dot(record)), self._dot_file()
        if file is None:
            say(text.removesuffix("\n"))
        else:
            write_text(file, text)
            say(f"wrote {file}")

    def _page(self, record: dict[str, Any], result: Path) -> str:
        name = record["model"]["name"]
        if self.compare is None:
            return graph_page([circuit_data(record, folder_name(result))], f"Circuit of {name}")
        other = read_record(result_file(self.compare))
        check_comparable(record, other)
        names = _names(result, self.compare)
        circuits = [circuit_data(*pair) for pair in zip((record, other), names, strict=True)]
        return graph_page(circuits, f"Two circuits of {name}", compare=True)

    def _dot_file(self) -> Path | None:
        return None if self.dot in (None, STANDARD_OUTPUT) else Path(self.dot)


def _names(result: Path, other: Path) -> tuple[str, str]:
    """Name two results: by folder, or by path if the folders' names are equal."""
    names = folder_name(result), folder_name(other)
    return names if names[0] != names[1] else (str(result), str(other))


def difference_of(result: Path, other: Path) -> Difference:
    """Return the difference between two saved results."""
    first, second = (read_record(result_file(folder)) for folder in (result, other))
    check_comparable(first, second)
    decisions = saved_decisions(first), saved_decisions(second)
    found = difference(*decisions, (first["settings"], second["settings"]))
    return replace(found, names=_names(result, other))


def folder_name(result: Path) -> str:
    """Return a result's name in a drawing: that of its folder."""
    return result_file(result).absolute().parent.name


def check_comparable(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Refuse results of different models; warn if only the weights differ."""
    one, two = first["model"], second["model"]
    if one["digest"] == two["digest"]:
        return
    if (one["name"], one["edges"]) != (two["name"], two["edges"]):
        raise ResultError(
            f"these results are of different models, {one['name']} with {one['edges']:,} edges and "
            f"{two['name']} with {two['edges']:,}; compare results of one model"
        )
    warn(f"the two results are of models named {one['name']} with different weights")


def encodable(text: str) -> str:
    """Replace what UTF-8 cannot encode (lone surrogates) with question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
