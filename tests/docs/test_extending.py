"""Methods, metrics, number formats and engines from outside: one short file each, public names alone.

The files are those of docs/extending.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from auto_circuit.data import PromptDataLoader
from auto_circuit.utils.patchable_model import PatchableModel

import pahq_plugin as pahq
from pahq_plugin.errors import ConfigError, MetricError
from tests.helpers.small import loader, small_model

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FILES = dict(re.findall(r'```python title="(\w+\.py)"\n(.*?)```', PAGE.read_text(), re.DOTALL))
LONGEST = 40


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def given() -> tuple[PatchableModel, PromptDataLoader]:
    return small_model(), loader()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_takes_public_names_alone(name: str) -> None:
    assert len(FILES[name].splitlines()) <= LONGEST
    assert not re.search(r"pahq_plugin\.\w|import _", FILES[name])


def test_a_method(given: tuple[PatchableModel, PromptDataLoader]) -> None:
    result = pahq.discover(*given, method="by_distance:method", n_edges=5, progress=False)
    assert len(result.circuit) >= 5 and result.settings["method"] == "by-distance"
    sizes = [abs(decision.effect) for decision in result.decisions]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0
    assert result.settings["scored"] and result.prune_scores


def test_a_comparison_and_its_page_take_a_method(importable: Path, monkeypatch: Any) -> None:
    from typer.testing import CliRunner

    from pahq_plugin.cli.app import app

    monkeypatch.setenv("PYTHONPATH", str(importable))
    asked = [
        "compare",
        "tracr-xproportion",
        "--methods",
        "by_distance:method",
    ]
    done = CliRunner().invoke(app, [*asked, "--out", str(importable / "out")])
    assert done.exit_code == 0, done.output
    assert "by_distance:method" in (importable / "out" / "report.html").read_text()


def test_a_metric(given: tuple[PatchableModel, PromptDataLoader]) -> None:
    from improbability import metric  # type: ignore[import-not-found]

    options: dict[str, Any] = {"method": "acdc", "threshold": 0.001, "progress": False}
    by_value = pahq.discover(*given, metric=metric, **options)
    by_name = pahq.discover(*given, metric="improbability:metric", **options)
    assert [d.effect for d in by_value.decisions] == [d.effect for d in by_name.decisions]
    assert by_name.settings["metric"] == "improbability:metric"


def test_a_number_format(given: tuple[PatchableModel, PromptDataLoader]) -> None:
    precision = pahq.PrecisionConfig(low="six_bits:int6", mlp="six_bits:int6", kernel="eager")
    screened = pahq.discover(*given, precision=precision, threshold=0.01, progress=False)
    exact = pahq.discover(*given, method="acdc", threshold=0.01, progress=False)
    assert screened.circuit == exact.circuit
    assert screened.settings["precision"]["low"] == "six_bits:int6"


def test_an_engine(given: tuple[PatchableModel, PromptDataLoader]) -> None:
    options: dict[str, Any] = {"method": "acdc", "threshold": 0.01, "progress": False}
    logged = pahq.discover(*given, engine="logged_engine:factory", **options)
    assert logged.decisions == pahq.discover(*given, **options).decisions
    assert logged.settings["engine"] == "logged"


@pytest.mark.parametrize(
    ("option", "name", "error"),
    [
        ("method", "nowhere:method", ConfigError),
        ("method", "by_distance:scores", ConfigError),
        ("method", "by_distance:nothing", ConfigError),
        ("metric", "by_distance:__doc__", MetricError),
        ("metric", "nowhere:metric", ConfigError),
        ("engine", "nowhere:factory", ConfigError),
    ],
)
def test_what_is_not_there_is_named(
    given: tuple[PatchableModel, PromptDataLoader], option: str, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=re.escape(repr(name))):
        pahq.discover(*given, progress=False, **{option: name})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nowhere:int6"):
        pahq.PrecisionConfig(low="nowhere:int6")
