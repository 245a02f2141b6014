"""Compare two results on one graph: which edges only one of them kept, and which effects differ."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from pahq_plugin.errors import ResultError, printable
from pahq_plugin.labels import edge_label
from pahq_plugin.results.decision import Decision
from pahq_plugin.results.notebook import framed, table
from pahq_plugin.results.terminal import titled

if TYPE_CHECKING:
    from pahq_plugin.host import Edge  # for results read from files: only names and positions

SHOWN = 20
"""How many edges of each list are shown; the `Difference` itself holds all of them."""


class Change(NamedTuple):
    """An edge and its effect (or score) in both results."""

    edge: Edge
    first: float
    second: float

    @property
    def by(self) -> float:
        """Second effect minus first."""
        return self.second - self.first


@dataclass(frozen=True, repr=False)
class Difference:
    """The difference between two results on one graph.

    Attributes:
        names: a name for each result: method and threshold.
        only_first: edges that only the first result kept, with both effects, largest first.
        only_second: edges that only the second result kept, likewise.
        shared: edges that both kept, in the order of the first result.
        changes: every edge whose effects differ, largest difference first; empty if the effects are in
            different units (different metrics, or effects and scores).
        edges: number of edges in the graph.
        same_unit: whether the effects can be compared.
    """

    names: tuple[str, str]
    only_first: tuple[Change, ...]
    only_second: tuple[Change, ...]
    shared: tuple[Edge, ...]
    changes: tuple[Change, ...]
    edges: int
    same_unit: bool

    @property
    def same_circuit(self) -> bool:
        """Whether both kept the same edges."""
        return not self.only_first and not self.only_second

    @property
    def jaccard(self) -> float:
        """Intersection over union of the two circuits; 1 if both are empty."""
        either = len(self.shared) + len(self.only_first) + len(self.only_second)
        return len(self.shared) / either if either else 1.0

    def __repr__(self) -> str:
        return f"<Difference: {self.summary()}>"

    def summary(self) -> str:
        """Return one line: the number of shared edges, and of edges that only one result kept."""
        first, second = self.names
        line = (
            f"{len(self.shared):,} edges in both, {len(self.only_first):,} only in {first}, "
            f"{len(self.only_second):,} only in {second}, of {self.edges:,}"
        )
        if not self.same_unit:
            return printable(f"{line}; effects are in different units")
        if not self.changes:
            return printable(f"{line}; all effects are equal")
        largest = self.changes[0]
        return printable(
            f"{line}; {len(self.changes):,} effects differ, by at most {abs(largest.by):.2g} "
            f"({edge_label(largest.edge)})"
        )

    def __rich__(self) -> Group:
        return self.shown()

    def shown(self, most: int = SHOWN) -> Group:
        """Return the summary and the first ``most`` edges of each list, for a rich console."""
        parts: list[RenderableType] = [Text(self.summary(), style="bold")]
        for title, changes in self._lists(most) if most else ():
            made = titled(Text(title))
            made.add_column("edge", no_wrap=True)
            for name in self.names:
                made.add_column(Text(printable(name)), justify="right")
            for change in changes[:most]:
                cells = (f"{change.first:.3g}", f"{change.second:.3g}")
                made.add_row(Text(printable(edge_label(change.edge))), *cells)
            parts.append(made)
        return Group(*parts)

    def _repr_html_(self) -> str:
        body = f"<p><strong>{html.escape(self.summary())}</strong></p>"
        columns = ["edge", *(html.escape(printable(name)) for name in self.names)]
        for title, changes in self._lists(SHOWN):
            rows = [
                [html.escape(printable(edge_label(c.edge))), f"{c.first:.3g}", f"{c.second:.3g}"]
                for c in changes[:SHOWN]
            ]
            body += table(html.escape(title), columns, rows, {1, 2})
        return framed(body)

    def _lists(self, most: int) -> list[tuple[str, tuple[Change, ...]]]:
        """Return title and edges of each list that is not empty."""
        found = []
        for name, changes in zip(self.names, (self.only_first, self.only_second), strict=True):
            if changes:
                counted = f"first {most} of {len(changes):,}" if len(changes) > most else len(changes)
                found.append((printable(f"Only in {name} ({counted})"), changes))
        return found


def difference(
    first: Sequence[Decision],
    second: Sequence[Decision],
    settings: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Difference:
    """Compare two results: decisions on the same edges in any order, and both results' settings.

    Raises:
        ResultError: an edge exists in only one of the two graphs; the message names it.
    """
    ours, theirs = ({edge_label(d.edge): d for d in decisions} for decisions in (first, second))
    _check_one_graph(ours, theirs)
    pairs = [(decision, theirs[name]) for name, decision in ours.items()]

    def only(kept: bool) -> tuple[Change, ...]:
        found = [_change(a, b) for a, b in pairs if a.kept is kept and b.kept is not kept]
        return tuple(sorted(found, key=lambda c: -abs(c.first if kept else c.second)))

    same_unit = _unit(settings[0]) == _unit(settings[1])
    changed = [_change(a, b) for a, b in pairs if a.effect != b.effect] if same_unit else []
    return Difference(
        names=_names(*settings),
        only_first=only(True),
        only_second=only(False),
        shared=tuple(a.edge for a, b in pairs if a.kept and b.kept),
        changes=tuple(sorted(changed, key=lambda c: -abs(c.by))),
        edges=len(pairs),
        same_unit=same_unit,
    )


def _change(a: Decision, b: Decision) -> Change:
    return Change(a.edge, a.effect, b.effect)


def _check_one_graph(ours: Mapping[str, Decision], theirs: Mapping[str, Decision]) -> None:
    for here, there, which in ((ours, theirs, "first"), (theirs, ours, "second")):
        lacking = next((name for name in here if name not in there), None)
        if lacking is not None:
            raise ResultError(
                f"the results are of different graphs ({len(ours):,} and {len(theirs):,} edges; only "
                f"the {which} has {lacking!r}): compare results of one model, with equal positional"
            )


def _unit(settings: Mapping[str, Any]) -> tuple[object, object]:
    """Return the unit of the effects: the metric, and the method if it scored the edges."""
    scored = bool(settings.get("scored"))
    return settings.get("method") if scored else None, settings.get("metric")


def _names(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str]:
    """Name both results by method, adding settings until the names differ."""
    names = (str(first.get("method")), str(second.get("method")))
    for key in ("threshold", "metric", "ablation", "n_edges", "steps", "seed"):
        if names[0] != names[1]:
            break
        if first.get(key) != second.get(key):
            names = (f"{names[0]}, {key} {first.get(key)}", f"{names[1]}, {key} {second.get(key)}")
    if names[0] == names[1]:
        names = (f"first {names[0]}", f"second {names[1]}")
    return names
