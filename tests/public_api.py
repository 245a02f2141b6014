"""The public names and their signatures as text; ``python -m tests.public_api`` writes the list anew."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

FILE = Path(__file__).with_name("public_api.txt")
PACKAGES = ("pahq_plugin", "pahq_exporters")


def listing() -> str:
    """Every public name, one a line."""
    lines: list[str] = []
    for package in PACKAGES:
        module = import_module(package)
        for name in sorted(module.__all__):
            lines += described(f"{package}.{name}", getattr(module, name))
    return "\n".join([*lines, *commands()]) + "\n"


def described(path: str, value: Any) -> Iterator[str]:
    """A function in one line; a class with its fields and what it adds to its bases."""
    if not inspect.isclass(value):
        yield f"{path}{_signature(value)}" if callable(value) else f"{path}: {type(value).__name__}"
        return
    if issubclass(value, BaseException):
        yield f"class {path}({value.__base__.__name__})"  # type: ignore[union-attr]
        return
    yield f"class {path}{_signature(value)}"
    fields = {f.name: f for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else {}
    for name in sorted({*fields, *(n for n in vars(value) if not n.startswith("_"))}):
        member = inspect.getattr_static(value, name, None)
        function = getattr(member, "__func__", member)
        if name in fields:
            yield f"  {path}.{name}: {fields[name].type}"
        elif inspect.isfunction(function):
            kind = "" if function is member else f"{type(member).__name__} "
            yield f"  {kind}{path}.{name}{_signature(function)}"
        else:
            yield f"  {path}.{name}: property"


def _signature(function: Any) -> str:
    """With defaults that have a name of their own shown by it, since their text may hold an address."""
    signature = inspect.signature(function)
    parameters = [
        p.replace(default=Named(p.default)) if p.default is not p.empty else p
        for p in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters))


@dataclasses.dataclass(frozen=True)
class Named:
    """A default value that shows itself the same in every process."""

    value: Any

    def __repr__(self) -> str:
        text = repr(self.value)
        return f"<{type(self.value).__name__}>" if " at 0x" in text else text


def commands() -> Iterator[str]:
    """Commands of ``pahq`` with arguments and options; those of `pahq_exporters` among them."""
    from pahq_exporters import commands as more
    from pahq_plugin.cli import app as cli

    app = typer.Typer()
    app.registered_commands += cli.app.registered_commands
    for name, function in (("export", more.export), ("import", more.import_graph), ("run", more.run)):
        app.command(name)(function)
    group: Any = typer.main.get_command(app)
    for name, command in sorted(group.commands.items()):
        yield f"pahq {name}"
        for parameter in sorted(command.params, key=lambda p: p.opts):
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            is_option = parameter.param_type_name == "option"
            note = " (required)" if parameter.required else ""
            yield f"  {names if is_option else names.upper()}{note}"


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
