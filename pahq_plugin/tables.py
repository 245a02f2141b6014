"""Results as tables in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pahq_plugin.errors import printable

BAR_WIDTH = 24


def print_record(record: dict[str, Any], stats: dict[str, Any], top: int) -> None:
    """Print a result: a summary, its ``top`` strongest edges, its busiest nodes, what it cost."""
    console = Console(highlight=False, markup=False)
    console.print(summary(record), style="bold")
    kept = strongest(record["decisions"])
    if kept and top:
        console.print(edge_table(kept, top, bool(record["settings"].get("scored"))))
        console.print(f"Busiest nodes: {busiest(kept)}")
    if stats:
        console.print(cost(stats))


def summary(record: dict[str, Any]) -> str:
    """One line: how many edges were kept, by which method and settings."""
    settings, decisions = record["settings"], record["decisions"]
    kept = sum(entry["kept"] for entry in decisions)
    line = f"{kept:,} of {len(decisions):,} edges kept by {settings['method']}"
    if not settings.get("scored"):
        line += f", threshold {settings['threshold']:g}, {settings['metric']}"
    precision = settings.get("precision")
    if precision:
        line += f", heads {precision['low']}, MLPs {precision['mlp']}"
    return printable(f"{line}, {settings['ablation']} ablation, model {record['model']['name']}")


def strongest(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kept decisions, largest magnitude first."""
    kept = [entry for entry in decisions if entry["kept"]]
    return sorted(kept, key=lambda entry: (-abs(entry["effect"]), label(entry)))


def label(entry: dict[str, Any]) -> str:
    """The edge's name, with its position if it has one."""
    position = "" if entry["seq_idx"] is None else f" @{entry['seq_idx']}"
    return printable(entry["edge"]) + position


def edge_table(kept: list[dict[str, Any]], top: int, scored: bool) -> Table:
    """The strongest edges with their effects as numbers and bars."""
    title = f"Strongest {min(top, len(kept))} of {len(kept):,} kept edges"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("#", justify="right", style="dim")
    table.add_column("edge", no_wrap=True)
    table.add_column("score" if scored else "effect", justify="right")
    table.add_column("", no_wrap=True)
    if not scored:
        table.add_column("decided on")
    largest = abs(kept[0]["effect"]) or 1.0
    for rank, entry in enumerate(kept[:top], start=1):
        bar = "█" * max(1, round(BAR_WIDTH * abs(entry["effect"]) / largest))
        row = [str(rank), label(entry), f"{entry['effect']:.3g}", bar]
        table.add_row(*row, *([] if scored else ["FP32" if entry["exact"] else "screened"]))
    return table


def busiest(kept: list[dict[str, Any]], count: int = 8) -> str:
    """The nodes with most kept edges, Q, K and V of a head counted together."""
    edges: Counter[str] = Counter()
    for entry in kept:
        source, destination = entry["edge"].split("->")
        edges[source] += 1
        edges[destination.removesuffix(".Q").removesuffix(".K").removesuffix(".V")] += 1
    return ", ".join(
        f"{printable(node)} ({n})" for node, n in sorted(edges.items(), key=_by_count)[:count]
    )


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return (-item[1], item[0])


def cost(stats: dict[str, Any]) -> str:
    """One line: time, evaluations, memory."""
    line = f"{stats['seconds']:.1f} s"
    if stats["evaluations"]:
        line += (
            f" ({stats['forward_equivalents']:,.0f} plain forwards), {stats['evaluations']:,} "
            f"evaluations, {stats['re_evaluations']:,} edges decided again in FP32"
        )
    return f"{line}, peak memory {stats['peak_bytes'] / 2**20:,.0f} MiB"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose cells are text already; the first column names the row."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def print_examination(found: dict[str, Any]) -> None:
    """Print what ``pahq doctor`` found."""
    console = Console(highlight=False)
    versions = Table(title="Installed", title_justify="left", title_style="bold")
    versions.add_column("package")
    versions.add_column("version")
    for name, version in found["versions"].items():
        versions.add_row(name, version or "[red]missing[/red]")
    console.print(versions)
    formats = Table(title=f"Number formats on {found['device']}", title_justify="left",
                    title_style="bold")  # fmt: skip
    formats.add_column("format")
    formats.add_column("this hardware multiplies it")
    formats.add_column("kernel used")
    for name, fast in found["formats"].items():
        formats.add_row(name, "yes" if fast else "no", found["kernels"].get(name, ""))
    console.print(formats)
    console.print("Screening computes every format in FP32 arithmetic, exact in its numerics, so far.")
    console.print(f"Default precision here: {found['default_precision']}")
    for advice in found["advice"]:
        console.print(f"- {advice}", markup=False)
