"""Write a comparison's report: tables, plots and the page.

====================  ==============================================================================
in the folder         holds
====================  ==============================================================================
``report.html``       the page
``tables/``           tidy tables as CSV and JSON, readable ones as Markdown
``plots/``            every chart as PNG and SVG
====================  ==============================================================================
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from pahq_plugin.compare import summary
from pahq_plugin.compare import tables as tidy
from pahq_plugin.compare.baselines import BASELINES, get_baseline
from pahq_plugin.compare.page import readable as shown
from pahq_plugin.compare.page.charts import Frames, precision_charts, problem_charts
from pahq_plugin.compare.page.page import Report, comparison_page, reference_threshold
from pahq_plugin.compare.page.static import write_chart
from pahq_plugin.compare.plan import Plan, Search, slug
from pahq_plugin.compare.run import Outcome
from pahq_plugin.compare.tables import Material, read_material
from pahq_plugin.errors import ConfigError, counted
from pahq_plugin.host.algorithms import host_options
from pahq_plugin.system.files import installed_version, write_text
from pahq_plugin.system.meter import cpu_name
from pahq_plugin.system.progress import progress_bar

REPORT_FILE = "report.html"
PACKAGES = ("pahq-plugin", "auto-circuit", "transformer-lens", "torch")
COSTLY = ("integrated_grad_samples", "epochs")
"""Options of host algorithms that a plan may lower to save time."""


def write_report(plan: Plan, folder: Path, outcome: Outcome, how: str, progress: bool = True) -> Report:
    """Write tables, plots and page from the results in a comparison's folder.

    Args:
        plan: what was compared.
        folder: the comparison's folder.
        outcome: of `pahq_plugin.compare.run.run_plan`.
        how: processes and threads, for the page.
        progress: show a bar when a terminal is attached.

    Raises:
        ConfigError: there are no results to report.
        ResultError: a file is damaged.
    """
    material = read_material(plan, folder)
    if not material.findings:
        reasons = [*outcome.refused.values(), *outcome.failed.values()]
        raise ConfigError(f"nothing to report: {reasons[0] if reasons else 'no search was run'}")
    frames = make_frames(material)
    left_out = [*reductions(plan, material), *troubles(outcome)]
    report = Report(plan, material, frames, left_out, list(_facts(plan, material, how)))
    write_tables(report, folder / "tables")
    charts = [
        *(chart for problem in report.problems for chart in problem_charts(problem, material, frames)),
        *precision_charts(frames),
    ]
    with progress_bar("plots", len(charts), progress) as bar:
        for done, chart in enumerate(charts, start=1):
            write_chart(chart, folder / "plots")
            bar(done, chart.ident)
    write_text(folder / REPORT_FILE, comparison_page(report))
    return report


def make_frames(material: Material) -> Frames:
    """Make all tables of a comparison."""
    circuits = tidy.circuits(material)
    thresholds = sorted(circuits["threshold"].dropna().unique()) if len(circuits) else []
    points = [summary.at_threshold(material, float(threshold)) for threshold in thresholds]
    empty = pd.DataFrame(columns=["problem", "method", "threshold", "size"])
    return Frames(
        searches=tidy.searches(material),
        costs=tidy.costs(material),
        circuits=circuits,
        summary=summary.summary(material),
        points=pd.concat(points, ignore_index=True) if points else empty,
        study=summary.precision_study(material),
    )


def write_tables(report: Report, folder: Path) -> None:
    """Write tidy tables as CSV and JSON, and readable ones as Markdown."""
    for name, frame in vars(report.frames).items():
        write_text(folder / f"{name}.csv", frame.to_csv(index=False))
        write_text(folder / f"{name}.json", frame.to_json(orient="records", indent=1) + "\n")
    for table in shown_tables(report):
        write_text(folder / f"{slug(table.ident)}.md", table.markdown())


def shown_tables(report: Report) -> Iterator[shown.Table]:
    """Yield every readable table."""
    yield shown.across(report.frames)
    for problem in report.problems:
        yield shown.overview(problem, report.frames)
        threshold = reference_threshold(problem, report)
        if threshold is not None:
            yield shown.circuits_at(problem, threshold, report.frames)
    if not report.frames.study.empty:
        yield shown.study(report.frames)


def reductions(plan: Plan, material: Material) -> Iterator[str]:
    """Yield what was reduced compared with a method's defaults or with the other methods."""
    yield from _lowered_options(material)
    fewer: dict[str, list[str]] = {}
    for problem in plan.problems:
        searches = [search for search in plan.searches if search.problem == problem]
        for method in dict.fromkeys(search.method for search in searches):
            what = _fewer([s for s in searches if s.method == method], searches)
            if what and "@" not in method:
                fewer.setdefault(f"{method}: {what}", []).append(problem.label)
    for what, problems in fewer.items():
        yield f"{what} ({', '.join(problems)})."
    methods = {search.method for search in plan.searches}
    for problem in plan.problems:
        own = {search.method for search in plan.searches if search.problem == problem}
        missing = [name for name in BASELINES if name in methods - own]
        if missing:
            yield f"Not run on {problem.label}: {', '.join(missing)}."


def _fewer(own: Sequence[Search], fellows: Sequence[Search]) -> str:
    """Return how many of the plan's seeds and thresholds a method had; empty if all."""
    counts = (
        ("seeds", len({s.seed for s in own}), len({s.seed for s in fellows})),
        ("thresholds", len(_thresholds(own)), len(_thresholds(fellows))),  # 0 if the method takes none
    )
    return " and ".join(f"{used} of {all_} {name}" for name, used, all_ in counts if 0 < used < all_)


def _thresholds(searches: Iterable[Search]) -> set[float]:
    return {search.threshold for search in searches if search.threshold}


def _lowered_options(material: Material) -> Iterator[str]:
    """Yield options of host algorithms below their default, each once."""
    seen = set()
    for finding in material.findings:
        method = finding.search.method
        key = get_baseline(method).method.key
        for name in COSTLY:
            used = finding.cost["options"].get(name)
            usual = host_options(key).get(name) if key else None
            if used is not None and usual is not None and used < usual and (method, used) not in seen:
                seen.add((method, used))
                yield f"{method}: {name.replace('_', ' ')} {used:,} instead of the host's {usual:,}."


def troubles(outcome: Outcome) -> Iterator[str]:
    """Yield what was refused or failed, and why."""
    for label, reason in outcome.refused.items():
        yield f"Not possible: {label}: {reason}."
    for label, reason in outcome.failed.items():
        yield f"FAILED: {label}: {reason}."


def _facts(plan: Plan, material: Material, how: str) -> Iterator[tuple[str, str]]:
    searches = plan.searches
    batches = {s.batches for s in searches}
    prompts = [len(judged.record["whole"]) for judged in material.judged]
    yield "Methods", ", ".join(dict.fromkeys(s.method for s in searches))
    yield "Seeds", ", ".join(map(str, sorted({s.seed for s in searches})))
    yield "Thresholds", ", ".join(f"{t:g}" for t in sorted(_thresholds(searches)))
    searched = ", ".join("all batches" if b is None else counted(b, "batch", "batches") for b in batches)
    least, most = min(prompts, default=0), max(prompts, default=0)
    judged = f"{least} others" if least == most else f"{least} to {most} others"
    alike = ", the same for every method" if len(batches) == 1 else ""
    yield "Prompts", f"for searching: {searched}{alike}; for judging: {judged}"
    yield "Ablation", ", ".join(dict.fromkeys(s.ablation for s in searches))
    yield "Searches", f"{len(material.findings):,}, each in its own process"
    yield "Machine", f"{cpu_name()}; {how}"
    yield "Versions", ", ".join(f"{name} {installed_version(name) or '?'}" for name in PACKAGES)
    yield "Written", f"{date.today().isoformat()}, Python {platform.python_version()}"
