"""Charts as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pahq_plugin.compare.page.chart import Chart, Series
from pahq_plugin.compare.page.static import write_chart
from tests.compare.page.pictures import texts


def test_equal_charts_give_equal_files(tmp_path: Path) -> None:
    chart = Chart("c", "T", "", "x", "y", [Series("pahq", [1, 2], [0.1, 0.2], [0, 0.1], [0.2, 0.3])])
    first = [file.read_bytes() for file in write_chart(chart, tmp_path / "a")]
    again = [file.read_bytes() for file in write_chart(chart, tmp_path / "b")]
    assert first == again and first[0].startswith(b"\x89PNG") and b"<svg" in first[1]
    other = replace(chart, series=[Series("pahq", [1, 2], [0.1, 0.3])])
    assert [file.read_bytes() for file in write_chart(other, tmp_path / "c")] != first


def test_names_with_dollars_are_drawn(tmp_path: Path) -> None:
    series = [Series("a$x$", [1.0, 100.0], [2.0, 3.0])]
    files = write_chart(Chart("c", "a$^$b", "", "x", "y", series, x_log=True), tmp_path)
    assert all(file.stat().st_size for file in files)
    words = texts(tmp_path / "c.svg")
    assert {"a$^$b", "a$x$"} <= words
    assert not any("mathdefault" in word for word in words)  # powers of the axis, as TeX
