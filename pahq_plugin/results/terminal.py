"""Results as tables in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pahq_plugin.errors import printable
from pahq_plugin.labels import ends
from pahq_plugin.results.decision import Decision, label, saved_decisions, strongest

BAR_WIDTH, LEAST_BAR = 24, 4
"""Length of the longest bar in characters, and the least with which bars are drawn at all."""


def titled(title: str | Text, *columns: str) -> Table:
    """Return an empty table with its title at the left."""
    return Table(*columns, title=title, title_justify="left", title_style="bold")


def print_view(view: RenderableType) -> None:
    """Print a rich renderable."""
    Console(highlight=False, markup=False).print(view)


def record_view(record: dict[str, Any], stats: dict[str, Any], top: int) -> Group:
    """Return a summary, the ``top`` strongest edges, the busiest nodes and the cost."""
    parts: list[RenderableType] = [Text(summary(record), style="bold")]
    kept = strongest(saved_decisions(record))
    if kept and top:
        parts.append(EdgeTable(kept, top, bool(record["settings"].get("scored"))))
        parts.append(Text(f"Busiest nodes: {busiest(kept)}"))
    parts += [Text(line) for line in (loss_line(record), cost(stats)) if line]
    return Group(*parts)


def summary(record: dict[str, Any]) -> str:
    """Return one line: the number of kept edges, the method and its settings."""
    settings, decisions = record["settings"], record["decisions"]
    kept = sum(entry["kept"] for entry in decisions)
    line = f"{kept:,} of {len(decisions):,} edges kept by {settings['method']}"
    if not settings.get("scored"):
        line += f", threshold {settings['threshold']:g}, {settings['metric']}"
    if "off_paths" in settings:
        line += f", {settings['off_paths']:,} off all paths dropped"
    precision = settings.get("precision")
    if precision:
        line += f", heads {precision['low']}, MLPs {precision['mlp']}"
    return printable(f"{line}, {settings['ablation']} ablation, model {record['model']['name']}")


class EdgeTable:
    """The strongest edges with their effects as numbers and bars, as wide as the console allows.

    In a narrow console bars get shorter, then they are dropped, then the column ``decided on``. Names
    are cut only if they alone do not fit.
    """

    def __init__(self, kept: list[Decision], top: int, scored: bool) -> None:
        self._kept, self._top, self._scored = kept, top, scored

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        shown = self._kept[: self._top]
        name = max(cell_len(label(decision)) for decision in shown)
        number = max(len(f"{decision.effect:.3g}") for decision in shown)
        decided = 0 if self._scored else len("decided on") + 3
        spare = options.max_width - (name + max(number, len("effect")) + len(str(len(shown))) + 10)
        bar = min(BAR_WIDTH, spare - decided - 3)
        block = "#" if options.ascii_only else "█"
        yield self._table(shown, max(bar, 0) if bar >= LEAST_BAR else 0, block, 0 < decided <= spare)

    def _table(self, shown: list[Decision], bar: int, block: str, decided: bool) -> Table:
        """Make the table; ``bar`` is the width of the longest bar, 0 for none."""
        table = titled(f"Strongest {len(shown)} of {len(self._kept):,} kept edges")
        table.add_column("#", justify="right", style="dim")
        table.add_column("edge", no_wrap=True)
        table.add_column("score" if self._scored else "effect", justify="right", no_wrap=True)
        if bar:
            table.add_column("", no_wrap=True)
        if decided:
            table.add_column("decided on", no_wrap=True)
        largest = abs(shown[0].effect) or 1.0
        for rank, decision in enumerate(shown, start=1):
            row = [str(rank), Text(label(decision)), f"{decision.effect:.3g}"]
            if bar:
                row.append(block * max(1, round(bar * abs(decision.effect) / largest)))
            if decided:
                row.append("FP32" if decision.exact else "screened")
            table.add_row(*row)
        return table


def busiest(kept: list[Decision], count: int = 8) -> str:
    """Return the nodes with the most kept edges; Q, K and V of a head count together."""
    edges = Counter(node for decision in kept for node in ends(decision.edge.name)[:2])
    most = sorted(edges.items(), key=lambda item: (-item[1], item[0]))[:count]
    return ", ".join(f"{printable(node)} ({n})" for node, n in most)


def loss_line(record: dict[str, Any]) -> str:
    """Return one line: the rise of the loss as edges were removed, which is the sum of their effects.

    Empty for a method that scores edges: scores are not changes of a loss.
    """
    settings = record["settings"]
    removed = [decision for decision in saved_decisions(record) if not decision.kept]
    if settings.get("scored") or not removed:
        return ""
    about = "" if all(decision.exact for decision in removed) else "about "
    change = math.fsum(decision.effect for decision in removed)
    return printable(
        f"Removing the other {len(removed):,} edges adds {about}{change:.3g} to {settings['metric']}"
    )


def cost(stats: dict[str, Any]) -> str:
    """Return one line: time, evaluations, memory; empty if they were not measured."""
    if not stats or not stats["seconds"]:
        return ""
    line = f"{stats['seconds']:.1f} s"
    if stats["evaluations"]:
        line += (
            f" ({stats['forward_equivalents']:,.0f} plain forwards), {stats['evaluations']:,} "
            f"evaluations, {stats['re_evaluations']:,} edges decided again in FP32"
        )
    if stats["estimates"]:
        line += f", {stats['estimates']['edges']:,} edges removed on estimates"
    return f"{line}, peak memory {stats['peak_bytes'] / 2**20:,.0f} MiB"
