"""The folder of a report: tables, charts, and what was left out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pahq_plugin.compare.page.page import Report, reference_threshold
from pahq_plugin.compare.page.write import reductions, troubles, write_report
from pahq_plugin.compare.plan import Plan, profile
from pahq_plugin.compare.run import Outcome
from pahq_plugin.errors import ConfigError
from tests.compare.page.small_comparison import PROBLEM, compare


def test_the_folder(report: Report, folder: Path) -> None:
    tables = {file.name for file in (folder / "tables").iterdir()}
    tidy = {f"{name}.{kind}" for name in vars(report.frames) for kind in ("csv", "json")}
    readable = {"across.md", "overview-greater-than.md", "circuits-greater-than.md", "precision.md"}
    assert tables == tidy | readable
    plots = {file.name for file in (folder / "plots").iterdir()}
    names = ["faithfulness-loss", "faithfulness-logit-diff", "time", "memory", "precision"]
    assert plots == {f"{name}-greater-than.{kind}" for name in names for kind in ("png", "svg")}
    for name, frame in vars(report.frames).items():
        read = pd.read_csv(folder / "tables" / f"{name}.csv")
        assert list(read.columns) == list(frame.columns) and len(read) == len(frame)
    assert not [file for file in folder.rglob(".*")]


@pytest.mark.full
def test_the_same_again(report: Report, folder: Path) -> None:
    """Nothing is searched again, and what does not hold times is the same, byte for byte."""
    kept = ("searches", "circuits", "points", "summary", "study")
    files = [folder / "tables" / f"{name}.csv" for name in kept]
    files += sorted((folder / "plots").glob("faithfulness-*.svg"))
    before = {file: file.read_bytes() for file in files}
    results = {file: file.stat().st_mtime_ns for file in folder.glob("*d/**/*.json")}
    assert len(results) == 7 * 3 + 4
    compare(folder)
    assert {file: file.read_bytes() for file in files} == before
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*d/**/*.json")} == results


def test_the_tables_say_what_was_found(report: Report) -> None:
    frames = report.frames
    searches = frames.searches[frames.searches["method"].isin(["pahq", "acdc"])]
    assert (searches["differing"] == 0).all() and len(searches) == 4
    points = frames.points.set_index(["method", "threshold"])
    for threshold in (0.003, 0.03):
        sizes = {points.loc[(m, threshold), "size"] for m in ("pahq", "acdc", "eap")}
        assert len(sizes) == 1  # the ranking is cut at the size of the FP32 circuit
        pd.testing.assert_series_equal(
            points.loc[("pahq", threshold)], points.loc[("acdc", threshold)], check_names=False
        )
    assert (points["faithfulness_loss_low"] <= points["faithfulness_loss"]).all()
    assert (points["faithfulness_loss"] <= points["faithfulness_loss_high"]).all()


def test_nothing_to_report(tmp_path: Path) -> None:
    empty = Plan(())
    with pytest.raises(ConfigError, match="no circuit is known"):
        refused = Outcome(refused={"ground-truth": "no circuit is known"})
        write_report(empty, tmp_path, refused, "", progress=False)
    with pytest.raises(ConfigError, match="no search"):
        write_report(empty, tmp_path, Outcome(), "", progress=False)
    assert not list(tmp_path.iterdir())


def test_without_judged_circuits(report: Report, folder: Path, tmp_path: Path) -> None:
    """A report is still written where every judgement failed."""
    (tmp_path / "found").symlink_to(folder / "found")
    bare = write_report(report.plan, tmp_path, Outcome(), "", progress=False)
    assert bare.frames.circuits.empty and reference_threshold(PROBLEM, bare) is None
    assert (tmp_path / "report.html").is_file()


def test_what_was_left_out(report: Report) -> None:
    assert list(reductions(report.plan, report.material)) == []
    assert list(troubles(Outcome({"a": "b"}, {"c": "d"}))) == ["Not possible: a: b.", "FAILED: c: d."]
    left_out = list(reductions(profile("reduced"), report.material))
    assert "host-acdc: 1 of 2 seeds and 1 of 4 thresholds (ioi)." in left_out
