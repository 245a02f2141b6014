"""The command ``pahq compare``: run methods side by side and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pahq_plugin import choices
from pahq_plugin.cli import options
from pahq_plugin.cli.output import complain, one_line_errors, print_json
from pahq_plugin.errors import ConfigError, counted
from pahq_plugin.system.launch import launched

if TYPE_CHECKING:
    from pahq_plugin.compare.page.page import Report
    from pahq_plugin.compare.plan import Plan
    from pahq_plugin.compare.run import Outcome

DEFAULT_METHODS = ("pahq", "acdc", "pahq-paper", "rtn-q", "eap", "eap-ig", "act-mag", "random")
"""Compared by default: methods that take seconds. ``all`` adds the rest."""


def compare(
    context: typer.Context,
    problems: Annotated[
        list[str] | None, options.argument(choices.PROBLEMS, "Problems, for example ioi.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A TOML file with problems, methods, ...")] = None,
    profile: Annotated[
        str | None, options.option(choices.PROFILES, "A bundled plan: reduced or full.")
    ] = None,
    methods: Annotated[
        str | None,
        options.list_option(choices.COMPARED, "pahq,acdc,eap,..., host keys, pahq@int8; or all."),
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Thresholds of searches, for example 0.01,0.001.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of prompt seeds.", min=1)] = 1,
    model: options.Model = None,
    prompts: options.Prompts = None,
    batch_size: options.BatchSize = None,
    positional: options.Positional = False,
    bos: options.Bos = None,
    batches: Annotated[int, typer.Option(help="Batches to search with; 0 for all.")] = 1,
    test_batches: Annotated[int, typer.Option(help="Held-out batches to judge with; 0 for all.")] = 0,
    ablation: options.Ablation = "resample",
    out: Annotated[Path, typer.Option(help="Folder for the comparison.")] = Path("runs/compare"),
    processes: Annotated[int, typer.Option(help="Searches at a time; 1 for clean timings.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each search.", min=1)] = 1,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare methods on PROBLEMS (or a plan) and write tables, plots and a page.

    Finished searches in the folder are not repeated: run the same command again to continue.
    """
    with one_line_errors(debug), launched() as world:
        shared = {
            "model": model, "prompts": prompts and str(prompts), "batch_size": batch_size,
            "positional": positional, "bos": bos,
        }  # fmt: skip
        named = {
            "problems": [{"name": name, **shared} for name in problems or ()],
            "methods": _methods(methods),
            "thresholds": _numbers(thresholds),
        }
        settings = {"batches": batches, "test_batches": test_batches, "ablation": ablation}
        chosen = _plan(
            plan,
            profile,
            {name: value for name, value in named.items() if value},
            options.flags_given(context, ("seeds", *settings, *shared)),
            settings | {"seeds": list(range(seeds))},
        )
        from pahq_plugin.compare.page.write import write_report
        from pahq_plugin.compare.run import run_plan

        outcome = run_plan(chosen, out, processes, threads, not as_json and world.is_first, world)
        if not world.is_first:
            return
        at_a_time = counted(processes * world.size, "process", "processes")
        how = f"{at_a_time} at a time, {counted(threads, 'thread')} each"
        report = write_report(chosen, out, outcome, how, progress=not as_json)
        _tell(report, out, outcome, as_json)
        if outcome.failed:
            raise typer.Exit(1)


def _plan(
    file: Path | None,
    profile: str | None,
    named: dict[str, Any],
    given: list[str],
    settings: dict[str, Any],
) -> Plan:
    """Return the plan that the flags name or describe.

    Args:
        named: problems, methods and thresholds that were given.
        given: other flags that were given.
        settings: values of the other flags, with defaults.
    """
    from pahq_plugin.compare.plan import make_plan, read_plan
    from pahq_plugin.compare.plan import profile as bundled

    sources = [name for name, value in (("--plan", file), ("--profile", profile)) if value]
    beside = [*sources[1:], *named, *given]
    if sources and beside:
        raise ConfigError(f"{sources[0]} says what to compare; leave out {beside[0]}")
    if file is not None:
        return read_plan(file)
    if profile is not None:
        return bundled(profile)
    if "problems" not in named:
        raise ConfigError("name a problem (pahq compare ioi), a --plan FILE or a --profile")
    return make_plan({"methods": list(DEFAULT_METHODS)} | named | settings, Path())


def _methods(text: str | None) -> list[str]:
    """Split names separated by commas; ``all`` means every baseline."""
    from pahq_plugin.compare.baselines import BASELINES

    return list(BASELINES) if text == "all" else _parts(text)


def _numbers(text: str | None) -> list[float]:
    try:
        return [float(part) for part in _parts(text)]
    except ValueError:
        raise ConfigError(f"--thresholds {text!r} must be numbers separated by commas") from None


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _tell(report: Report, out: Path, outcome: Outcome, as_json: bool) -> None:
    """Print the summary, what was refused or failed, and the path of the page."""
    from pahq_plugin.cli.output import print_table
    from pahq_plugin.compare.page.readable import across
    from pahq_plugin.compare.page.write import REPORT_FILE

    page, table = out / REPORT_FILE, across(report.frames)
    if as_json:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        print_json({"report": str(page), "summary": rows} | vars(outcome))
        return
    print_table(table.title, table.columns, table.rows)
    for label, lines in outcome.warned.items():
        for line in lines:
            complain(f"warning: {label}: {line}", style="yellow")
    for label, reason in outcome.refused.items():
        typer.echo(f"not possible: {label}: {reason}")
    for label, reason in outcome.failed.items():
        complain(f"failed: {label}: {reason}")
    typer.echo(f"report: {page}")
