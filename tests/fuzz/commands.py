"""Command lines of every command, made up from what each says it takes.

They run on a model of eight edges in place of the bundled one, and comparisons stop before their first
search, so that none takes long. Paths stay in the output folder, which is the working folder.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from hypothesis import strategies as st

from pahq_exporters import commands as exporters
from pahq_exporters.run import main as light
from pahq_plugin.cli.app import app
from pahq_plugin.compare import run as sweep
from pahq_plugin.problems import bundled_model, vocabulary
from tests.fuzz.bench import Bench, Refused, check_message, holds
from tests.fuzz.graphs import EDGES, exported
from tests.fuzz.hostile import TEXTS, json_text
from tests.fuzz.prompts import PAIR
from tests.fuzz.results import files, invoke
from tests.fuzz.target import Target
from tests.helpers.small import transformer

SECONDS = 5.0
"""Of a whole command, which loads a model, searches or exports."""

WORDS = ("ioi", "greater-than", "pahq", "acdc", "eap", "Random", "kl_div", "mse", "resample", "zero",
         "host", "int8", "bf16", "row", "uniform", "qkv,output", "int4", "high", "auto", "0.3", "eager",
         "cpu", "memory", "none",
         "dense", "sweep", "all", "model", "0.1,0.01", "reduced", "0.0", *EDGES)  # fmt: skip
PLACES = ("result", "result/result.json", "p.json", "d.onnx", "s.onnx", "plan.toml", "new",
          "new/deep/file", "new.onnx", "new.json", "new.html", "missing", "a b", "é", "x" * 300, "\n",
          "-", "result/new", "p.json/x")  # fmt: skip
TEXT = st.one_of(*[st.sampled_from(WORDS)] * 3, st.sampled_from([t for t in TEXTS if "\0" not in t]))
PATH = st.sampled_from(PLACES)
NUMBER = st.one_of(
    st.sampled_from(("0", "1", "2", "3")), st.sampled_from(("-1", "1e3", "x", "", "9" * 5000, "1.5"))
)
FLOAT = st.one_of(
    st.sampled_from(("0.01", "1", "0.5")), st.sampled_from(("nan", "inf", "-1", "0", "1e999", "x"))
)
ALWAYS_PATHS = ("dot",)
PROBLEMS = st.one_of(*[st.just("ioi")] * 4, TEXT)


@cache
def group() -> Any:
    """All commands, those of the exporters with them."""
    whole = typer.Typer(pretty_exceptions_enable=False)
    whole.registered_commands.extend(app.registered_commands)
    whole.command("export")(exporters.export)
    whole.command("run")(exporters.run)
    return whole


@cache
def _commands() -> dict[str, Any]:
    return typer.main.get_command(group()).commands  # type: ignore[attr-defined]


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments and options of its own; now and then one too many or too few."""
    name = draw(st.sampled_from(sorted(_commands())))
    command, words = _commands()[name], [name]
    options = [p for p in command.params if p.param_type_name == "option"]
    for parameter in command.params:
        if parameter not in options and draw(st.integers(0, 15)):
            words.append(draw(_value(parameter)))
    needed = [option for option in options if option.required and draw(st.integers(0, 15))]
    for option in [*needed, *draw(st.lists(st.sampled_from(options), max_size=3))]:
        if option.name in ("debug", "open_page"):
            continue
        words.append(draw(st.sampled_from(option.opts)))
        if not option.is_flag:
            words.append(draw(_value(option)))
    if not draw(st.integers(0, 12)):
        words.insert(
            draw(st.integers(0, len(words))),
            draw(st.sampled_from(("--", "-", "--nothing", "extra", "--json"))),
        )
    return [word for word in words if word != "--open"]


def _value(parameter: Any) -> st.SearchStrategy[str]:
    kind = parameter.bare_type
    if kind is Path or parameter.name in ALWAYS_PATHS:
        return PATH
    if parameter.name in ("problem", "problems"):
        return PROBLEMS
    return {int: NUMBER, float: FLOAT}.get(kind, TEXT)


def _small_model(device: str = "cpu") -> Any:
    """In place of the bundled one: its vocabulary and context, eight edges."""
    sizes = {"n_layers": 1, "n_heads": 1, "d_model": 4, "d_head": 4, "d_mlp": 4}
    model = transformer(**sizes, n_ctx=bundled_model.config()["n_ctx"], d_vocab=len(vocabulary.WORDS))
    return model.to(device)


@contextlib.contextmanager
def _ready(bench: Bench) -> Iterator[None]:
    """The working folder with files of every kind, and nothing that takes long."""
    bench.clean()
    for name, content in exported().items():
        (bench.out / name).write_bytes(content)
    (bench.out / "result").mkdir()
    (bench.out / "result" / "result.json").write_bytes(files()[0])
    (bench.out / "p.json").write_text(json_text({"prompts": [PAIR] * 30}).replace("11", "7"))
    (bench.out / "plan.toml").write_text('problems = ["ioi"]\nmethods = ["acdc"]\n')
    before = os.getcwd()
    os.chdir(bench.out)
    try:
        with (
            mock.patch.object(bundled_model, "load", _small_model),
            mock.patch.object(sweep, "run_work", lambda *_: None),
        ):
            yield
    finally:
        os.chdir(before)


def check(content: list[str], bench: Bench) -> None:
    """A command ends with 0, or with one line on standard error and 1, or with how to use it and 2."""
    with _ready(bench):
        printed = invoke(bench, group(), content, seconds=SECONDS)
    holds("NaN" not in printed if "--json" in content else True, "NaN in printed JSON")


def check_light(content: list[str], bench: Bench) -> None:
    """``python -m pahq_exporters.run``, which a deployment without PyTorch has."""
    out, err = io.StringIO(), io.StringIO()
    with _ready(bench), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = bench.call(_exit_code, content[1:], seconds=SECONDS)
    if code == 0:
        return
    text = err.getvalue().rstrip("\n")
    holds(code in (1, 2) and "Traceback" not in text, f"exit code {code}: {text[-300:]!r}")
    if code == 1:
        check_message(text)
    raise Refused(text)


def _exit_code(arguments: list[str]) -> object:
    try:
        return light(arguments)
    except SystemExit as ended:  # of argparse
        return ended.code


def targets() -> list[Target]:
    """Both entry points."""
    runs = lines().filter(lambda words: words[:1] == ["run"])
    return [
        Target("commands", lines(), check, share=0.1, sample=30),
        Target("light-command", runs, check_light, share=0.05, sample=15),
    ]
