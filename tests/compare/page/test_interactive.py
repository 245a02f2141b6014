"""Charts that answer to the mouse, and their numbers."""

from __future__ import annotations

from pahq_plugin.compare.page.chart import Chart, Series
from pahq_plugin.compare.page.interactive import figure


def test_texts_of_a_chart_cannot_become_markup() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    chart = Chart("c", hostile, hostile, hostile, hostile, [Series(hostile, [1], [1])])
    assert "<img" not in figure(chart) and figure(chart).count("</script>") == 1
