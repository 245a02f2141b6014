"""Tables of a report for reading: rounded, with units, the same in HTML and Markdown."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pahq_plugin.compare.page.charts import BEHAVIOUR_NAMES, Frames, plain

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row, and ``ident`` its file."""

    ident: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        head = "| " + " | ".join(self.columns) + " |"
        rule = "|" + "|".join(["---", *["---:"] * (len(self.columns) - 1)]) + "|"
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([f"**{self.title}.** {self.caption}", "", head, rule, *body]) + "\n"

    def html(self) -> str:
        """Return the table as HTML; a wide one scrolls inside its own region."""
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        label = html.escape(self.title, quote=True)
        return (
            f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table>'
            f"<caption><strong>{html.escape(self.title)}.</strong> {html.escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


Cell = Callable[[pd.Series], str]


def number(value: Any, digits: int = 3) -> str:
    """Round to so many significant digits; a missing value becomes a dash."""
    if value is None or pd.isna(value):
        return ABSENT
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def decimals(value: Any, places: int = 3) -> str:
    """Round to a fixed number of decimals; a missing value becomes a dash."""
    if value is None or pd.isna(value):
        return ABSENT
    return f"{round(float(value), places) + 0.0:.{places}f}"  # + 0.0 turns -0.0 into 0.0


def interval(row: pd.Series, name: str, places: int = 2) -> str:
    """Return ``0.98 (0.97 to 0.99)``, or the number alone if the interval is missing or has no width."""
    if name not in row or pd.isna(row[name]):
        return ABSENT
    shown, low, high = (decimals(row[key], places) for key in (name, f"{name}_low", f"{name}_high"))
    return shown if low == ABSENT or shown == low == high else f"{shown} ({low} to {high})"


def rendered(frame: pd.DataFrame, cells: dict[str, Cell], ident: str, title: str, caption: str) -> Table:
    """Return a table with one column per cell function, without columns that have no value."""
    rows = [[make(row) for make in cells.values()] for _, row in frame.iterrows()]
    kept = [i for i in range(len(cells)) if i == 0 or any(row[i] not in (ABSENT, "") for row in rows)]
    columns, *rows = ([row[i] for i in kept] for row in (list(cells), *rows))
    return Table(ident, title, caption, columns, rows)


def across(frames: Frames) -> Table:
    """Return one row per method, over all problems."""
    rows = frames.summary[frames.summary["method"].isin(plain(frames.summary["method"]))]
    grouped = rows.groupby("method", sort=False)
    means = grouped.mean(numeric_only=True)
    for name in {"differing", "decisions"} & set(rows.columns):
        means[name] = grouped[name].sum(min_count=1)
    means["problems"] = grouped.size()
    spent = frames.costs.groupby(["problem", "method"])[["forward_equivalents", "extra_mib"]].median()
    middle = spent.groupby("method").median()
    cells: dict[str, Cell] = {
        "method": lambda r: r["method"],
        "problems": lambda r: number(r["problems"]),
        "differs from FP32": _differs,
        "ROC AUC": lambda r: decimals(r.get("roc_auc")),
        "CPR, -loss": lambda r: decimals(r.get("cpr_loss"), 2),
        "CMD, -loss": lambda r: decimals(r.get("cmd_loss"), 2),
        "CPR, logit diff": lambda r: decimals(r.get("cpr_logit_diff"), 2),
        "CMD, logit diff": lambda r: decimals(r.get("cmd_logit_diff"), 2),
        "plain forwards": lambda r: number(middle["forward_equivalents"][r["method"]], 2),
        "MiB": lambda r: number(middle["extra_mib"][r["method"]], 2),
    }
    return rendered(
        means.reset_index(), cells, "across", "All methods over all problems",
        "Means over the problems that a method ran on (ROC AUC: those with a known circuit). Time of "
        "one search in plain forwards and its MiB above the loaded model: medians over problems.",
    )  # fmt: skip


def overview(problem: str, frames: Frames) -> Table:
    """Return one row per method: quality over all thresholds, agreement, cost."""
    rows = _of(frames.summary, problem)
    spent = _of(frames.costs, problem).groupby("method", sort=False)
    middle = spent[["seconds", "forward_equivalents", "extra_mib"]].median()
    cells: dict[str, Cell] = {
        "method": lambda r: r["method"],
        "ROC AUC": lambda r: interval(r, "roc_auc", 3),
        "pessimistic": lambda r: interval(r, "pessimistic_auc", 3),
        "CPR, -loss": lambda r: interval(r, "cpr_loss"),
        "CMD, -loss": lambda r: interval(r, "cmd_loss"),
        "CPR, logit diff": lambda r: interval(r, "cpr_logit_diff"),
        "CMD, logit diff": lambda r: interval(r, "cmd_logit_diff"),
        "differs from FP32": _differs,
        "Jaccard, seeds": lambda r: decimals(r.get("seed_stability"), 2),
        "Jaccard, thresholds": lambda r: decimals(r.get("threshold_stability"), 2),
        "seconds": lambda r: number(middle["seconds"][r["method"]], 2),
        "plain forwards": lambda r: number(middle["forward_equivalents"][r["method"]], 2),
        "MiB": lambda r: number(middle["extra_mib"][r["method"]], 2),
    }
    return rendered(
        rows, cells, f"overview-{problem}", f"All methods, {problem}",
        "Means over seeds with 95 % intervals. Seconds, plain forwards of the same prompts, and "
        "MiB above the loaded model: medians over searches.",
    )  # fmt: skip


def _differs(row: pd.Series) -> str:
    if "differing" not in row or pd.isna(row["differing"]):
        return ABSENT
    return f"{row['differing']:.0f} of {row['decisions']:,.0f}"


def circuits_at(problem: str, threshold: float, frames: Frames) -> Table:
    """Return one row per method: its circuits at one threshold, run on held-out prompts."""
    rows = frames.points[frames.points["threshold"] == threshold]
    cells: dict[str, Cell] = {
        "method": lambda r: r["method"],
        "edges": lambda r: number(r["size"]),
        "loss": lambda r: interval(r, "loss", 3),
        "logit diff": lambda r: interval(r, "logit_diff"),
        "accuracy": lambda r: interval(r, "accuracy"),
    }
    for behaviour, name in BEHAVIOUR_NAMES.items():
        for measure in ("faithfulness", "completeness"):
            key = f"{measure}_{behaviour}"
            cells[f"{measure}, {name}"] = lambda r, key=key: interval(r, key)
    return rendered(
        _of(rows, problem), cells, f"circuits-{problem}", f"Circuits at {threshold:g}, {problem}",
        "Run on held-out prompts, with all other edges patched. Rankings are cut at the size of the "
        "FP32 search's circuit (more where scores tie).",
    )  # fmt: skip


def study(frames: Frames, problem: str | None = None) -> Table:
    """Return the effect of precision on the conclusions, over all problems or for one."""
    rows = frames.study if problem is None else frames.study[frames.study["problem"] == problem]
    keys = ["method", "threshold"] if problem else ["method"]
    means = rows.groupby(keys, sort=False).mean(numeric_only=True)
    means["searches"] = rows.groupby(keys, sort=False)["searches"].sum()
    means["worst"] = rows.groupby(keys, sort=False)["worst"].max()
    first: dict[str, Cell] = {"method": lambda r: r["method"]}
    if problem:
        first["threshold"] = lambda r: f"{r['threshold']:g}"
    cells: dict[str, Cell] = first | {
        "searches": lambda r: number(r["searches"]),
        "differing edges": lambda r: decimals(r["differing"], 1),
        "worst": lambda r: number(r["worst"]),
        "Jaccard": lambda r: decimals(r["jaccard"]),
        "heads lost": lambda r: decimals(r["heads_lost"], 2),
        "heads gained": lambda r: decimals(r["heads_gained"], 2),
        "same top heads": lambda r: f"{100 * r['top_heads']:.0f} %",
        "faithfulness off by": lambda r: decimals(r["faithfulness_off"]),
        "decided in FP32": lambda r: f"{100 * r['exact_share']:.0f} %",
    }
    where = f", {problem}" if problem else ""
    return rendered(
        means.reset_index(), cells, f"precision-{problem}" if problem else "precision",
        f"What precision changes in the conclusions{where}",
        "Compared with the FP32 search of the same problem, threshold and seed; means. Heads lost: "
        "heads with a kept edge in FP32 but none here. Top heads: the five with the largest sums of "
        "outgoing effects.",
    )  # fmt: skip


def _of(frame: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Return the rows of one problem, without methods of the precision study."""
    rows = frame[frame["problem"] == problem]
    return rows[rows["method"].isin(plain(rows["method"]))]
