"""The ``README.md`` of a saved result: a Hugging Face model card.

The YAML front matter holds tags, the base model and, if given, a licence. The text says what was
found, how it was found, and how to load it. Equal results give equal cards.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pahq_plugin.errors import ConfigError, ResultError, printable
from pahq_plugin.results.decision import label, saved_decisions, strongest
from pahq_plugin.results.files import RESULT_FILE, RUN_FILE, read_record
from pahq_plugin.system.files import write_text

CARD_FILE = "README.md"
STRONGEST = 10
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|gpt2(-\w+)?|distilgpt2")
"""Matches a model name on the Hugging Face hub: owner/name, or one of the old names without an owner."""

PAHQ = "https://arxiv.org/abs/2510.23264"
ACDC = "https://arxiv.org/abs/2304.14997"
CITATION = """\
@article{wang2025pahq,
  title = {PAHQ: Accelerating Automated Circuit Discovery through Mixed-Precision Inference
           Optimization},
  author = {Wang, Xinhai and Yang, Shu and Wang, Liangyu and Zhang, Lin and Xie, Huanyi and Hu, Lijie and
            Wang, Di},
  journal = {arXiv preprint arXiv:2510.23264},
  year = {2025}
}"""


def write_card(
    folder: Path,
    *,
    measures: Mapping[str, float] | None = None,
    license: str | None = None,
    base_model: str | None = None,
    force: bool = False,
) -> Path:
    """Write the card of the result in ``folder`` atomically and return its path.

    The arguments are those of `pahq_plugin.results.result.Discovery.save_card`.

    Raises:
        ResultError: the folder holds no result, or a damaged one.
        ConfigError: a ``README.md`` exists already, or an argument is invalid.
    """
    file = folder / CARD_FILE
    if not (folder / RESULT_FILE).is_file():
        raise ResultError(f"no result in {folder}; a card goes into a folder with {RESULT_FILE}")
    check_card_place(folder, force)
    record = read_record(folder / RESULT_FILE)
    text = card_text(record, measures or {}, license, base_model)
    write_text(file, text.encode("utf-8", "replace").decode("utf-8"))
    return file


def check_card_place(folder: Path, force: bool) -> None:
    """Refuse with a `ConfigError` a folder that cannot get a card."""
    file = folder / CARD_FILE
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; save the card in another folder")
    if file.exists() and not force:
        raise ConfigError(f"{file} exists already; pass force (--force) to replace it")


def card_text(
    record: dict[str, Any],
    measures: Mapping[str, float],
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Return the Markdown text of a card of a checked record; see `write_card`."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ConfigError(f"license {license!r:.80} must be a name that the hub knows, such as mit")
    if base_model is not None and not HUB_NAME.fullmatch(base_model):
        raise ConfigError(f"base_model {base_model!r:.80} must be a model name on the hub: owner/name")
    for name, value in measures.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max or not isinstance(name, str):
            raise ConfigError(f"measure {name!r:.80} is {value!r:.80}; expected a name and a number")
    own = record["model"]["name"]
    base = base_model or (own if HUB_NAME.fullmatch(own) else None)
    parts = [
        _front_matter(record, license, base),
        _summary(record),
        _table("Settings", ("setting", "value"), _settings(record)),
        _measures(measures),
        _edges(record),
        _loading(record, base),
        f"## Method and citation\n\nACDC: <{ACDC}>. PAHQ: <{PAHQ}>. Made with pahq-plugin, a plugin of "
        f"auto-circuit.\n\n```bibtex\n{CITATION}\n```\n",
    ]
    return "\n".join(parts)


def _front_matter(record: dict[str, Any], license: str | None, base: str | None) -> str:
    tags = ["mechanistic-interpretability", "circuit-discovery", "pahq-plugin"]
    tags.append(record["settings"]["method"])
    lines = ["---", "library_name: pahq-plugin"]
    lines.append(f"license: {license}" if license else "# license: choose one, such as mit")
    lines += [f"base_model: {json.dumps(base)}"] if base else []
    return "\n".join([*lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---", ""])


def _summary(record: dict[str, Any]) -> str:
    model, decisions = record["model"], record["decisions"]
    kept, exact = (sum(entry[key] for entry in decisions) for key in ("kept", "exact"))
    share = kept / len(decisions) if decisions else 0.0
    method = _code(record["settings"]["method"])
    return (
        f"# Circuit of {_plain(model['name'])}\n\n"
        f"{kept:,} of {len(decisions):,} edges ({share:.1%}), found by `{method}`. "
        f"{exact:,} edges were decided in FP32"
        + (f", {len(decisions) - exact:,} in lower precision.\n" if exact < len(decisions) else ".\n")
    )


def _settings(record: dict[str, Any]) -> list[tuple[str, str]]:
    settings = {"model digest": record["model"]["digest"], **record["settings"]}
    rows = []
    for name, value in sorted(settings.items()):
        shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        rows.append((name, shown if len(shown) <= 400 else f"{shown[:397]}..."))
    return rows


def _measures(measures: Mapping[str, float]) -> str:
    if not measures:
        return (
            "## Faithfulness\n\nNot measured here. `pahq compare` measures faithfulness, completeness "
            "and more on held-out prompts.\n"
        )
    rows = [(name, f"{value:.4g}") for name, value in measures.items()]
    return _table("Faithfulness", ("measure", "value"), rows)


def _edges(record: dict[str, Any]) -> str:
    kept = strongest(saved_decisions(record))[:STRONGEST]
    rows = [(label(decision), f"{decision.effect:.3g}") for decision in kept]
    what = "score" if record["settings"].get("scored") else "effect"
    return _table(f"The {len(rows)} strongest edges", ("edge", what), rows)


def _loading(record: dict[str, Any], base: str | None) -> str:
    name = record["model"]["name"]
    if name == "pahq-bundled-4l":
        model = 'pahq.load_problem("ioi").model  # the bundled model'
    elif base:
        model = f'pahq.load_problem("ioi", model="{base}").model  # or as you loaded it'
    else:
        model = "...  # the host's PatchableModel that was searched"
    return (
        "## Load it again\n\n"
        f"`{RESULT_FILE}` holds every decision and the settings, `{RUN_FILE}` the cost of the run. "
        "The weights are not included: loading looks up the edges in the model and refuses a model "
        "with different weights.\n\n"
        "```python\nimport pahq_plugin as pahq\n\n"
        f"model = {model}\n"
        'result = pahq.Discovery.load("FOLDER", model)  # the folder of this file\n'
        "print(len(result.circuit), result.settings)\n```\n\n"
        "`pahq show FOLDER` prints it, `pahq show FOLDER --open` draws it; neither needs the model.\n"
    )


def _table(title: str, head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"## {title}", "", f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_plain(a)} | `{_code(b)}` |" for a, b in rows), ""])


def _plain(text: str) -> str:
    """Escape a name for Markdown text in a table."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))


def _code(text: str) -> str:
    """Escape text that goes between backticks in a table."""
    return printable(text).replace("`", "'").replace("|", "\\|")
