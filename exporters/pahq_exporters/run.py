"""Patched runs of an exported graph: ``python -m pahq_exporters.run graph.onnx ...``.

Only the standard library, numpy and onnxruntime are imported: a deployment does not need PyTorch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pahq_exporters.description import Description
from pahq_exporters.runtime.patcher import OnnxPatcher
from pahq_exporters.runtime.prompt_file import PromptFile, read_prompts
from pahq_plugin.errors import ConfigError, PahqError, counted, one_line
from pahq_plugin.labels import edge_label
from pahq_plugin.results.decision import saved_decisions
from pahq_plugin.results.files import read_configuration, read_record, result_file
from pahq_plugin.system.warn import never_fail_printing

TOP = 5


def run(
    graph: Path,
    prompts: Path,
    edges: Sequence[str] = (),
    *,
    all_edges: bool = False,
    each: bool = False,
    result: Path | None = None,
    head: str = "auto",
    limit: int | None = None,
    mode: str = "speed",
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Patch edges on prompts and measure the effect on the output.

    Args:
        graph: an exported graph.
        prompts: file of token ids in the host's JSON format.
        edges: names of edges.
        all_edges: patch every edge of the graph instead, each alone.
        each: patch each edge alone, instead of all together.
        result: a saved result whose removed edges to patch, which leaves its circuit.
        head: the head in FP32: ``"auto"``, ``"none"``, or ``LAYER.HEAD``.
        limit: number of prompts to use; ``None`` for all.
        mode, providers, threads: see `OnnxPatcher`.

    Returns:
        JSON values: for each run, and without a patch, the KL divergence from the clean output, the
        likeliest tokens of each prompt and, if the file has answers, the logit difference.

    Raises:
        ConfigError: not exactly one of ``edges``, ``all_edges`` and ``result``, or an unsuitable result.
        PahqError: see `OnnxPatcher.run`.
    """
    choices = sum((bool(edges), all_edges, result is not None))
    if choices > 1:
        raise ConfigError("give one of --edges, --all and --result")
    if choices < 1:
        raise ConfigError('name edges with --edges, such as "A0.1->MLP 2", or use --all or --result')
    patcher = OnnxPatcher(graph, providers=providers, mode=mode, threads=threads)  # type: ignore[arg-type]
    known = patcher.description
    if known.start_layer:
        raise ConfigError(
            f"{graph} starts at block {known.start_layer} and takes no tokens; export one with "
            "start_layer=0"
        )
    read = read_prompts(prompts, limit)
    if result is not None:
        edges = removed_edges(result, known)
        if known.graph == "sweep" and not each:
            raise ConfigError(
                f"{graph} is a sweep graph, which patches one edge at a time; for --result export a "
                "dense one, or add --each"
            )
    chosen = list(known.edges()) if all_edges else list(edges)
    known.indices(chosen)
    bound = patcher.prompts(read.clean, read.corrupt)
    clean = _last(known.positions, _clean(patcher, read))
    high = parse_head(head)
    if each or all_edges:
        names = [[name] for name in chosen]
        logits = patcher.run_each(bound, edges=chosen, head=high)
    else:
        names, logits = [chosen], [patcher.run(bound, edges=chosen, head=high)]
    runs = [
        {"edges": own, **_measure(_last(known.positions, one), clean, read)}
        for own, one in zip(names, logits, strict=True)
    ]
    return {
        "graph": str(graph),
        "kind": known.graph,
        "model": known.source_model,
        "providers": patcher.providers,
        "mode": mode,
        "prompts": len(read.clean),
        "clean": _measure(clean, clean, read),
        "runs": runs,
    }


def _clean(patcher: OnnxPatcher, read: PromptFile) -> np.ndarray[Any, Any]:
    """Return logits without a patch."""
    if patcher.description.graph == "dense":
        return patcher.run(read.clean)
    # A sweep graph must patch an edge; patched with its clean value, it changes nothing.
    own = patcher.prompts(read.clean, patcher.sources(read.clean))
    last = patcher.description.destinations[-1]
    return patcher.run(own, edges=[f"{patcher.description.sources[0]}->{last.name}"])


def _last(positions: str, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return logits at the last position, ``[batch, vocab]``."""
    return logits if positions == "last" else logits[:, -1]


def _measure(
    logits: np.ndarray[Any, Any], clean: np.ndarray[Any, Any], read: PromptFile
) -> dict[str, Any]:
    ours, theirs = _log_softmax(clean), _log_softmax(logits)
    kl = (np.exp(ours) * (ours - theirs)).sum(axis=-1)
    top = np.argsort(-logits, axis=-1, kind="stable")[:, :TOP]
    found: dict[str, Any] = {"kl_div": float(kl.mean()), "top_tokens": top.tolist()}
    if all(read.answers) and all(read.wrong_answers):
        right, wrong = (_means(logits, answers) for answers in (read.answers, read.wrong_answers))
        found["logit_diff"] = float((right - wrong).mean())
    return found


def _means(logits: np.ndarray[Any, Any], answers: list[list[int]]) -> np.ndarray[Any, Any]:
    """Return the mean logit of each prompt's answers, ``[batch]``."""
    for ids in answers:
        if any(token >= logits.shape[-1] for token in ids):
            raise ConfigError(f"answers {ids} are outside the vocabulary of {logits.shape[-1]}")
    return np.array([row[ids].mean() for row, ids in zip(logits, answers, strict=True)])


def _log_softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def parse_head(text: str) -> Any:
    """Parse ``--head``: ``(layer, head)``, ``None`` or ``"auto"``."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    found = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})", text)
    if found is None:
        raise ConfigError(f"--head {text!r} must be auto, none or LAYER.HEAD, for example 2.7")
    return int(found[1]), int(found[2])


def removed_edges(result: Path, known: Description) -> list[str]:
    """Return the edges that a saved result removed, as named in graphs."""
    file = result_file(result)
    record, configuration = read_record(file), read_configuration(file.parent)
    if record["model"]["digest"] != known.source_digest:
        _refuse_other_model(result, record, known)
    if configuration and known.source_configuration not in ("", configuration):
        raise ConfigError(
            f"{result} is of a model with the graph's weights, but another output slice, mask, "
            "activation function or other configuration; export that model"
        )
    ablation = record["settings"]["ablation"]
    if ablation != "resample":
        raise ConfigError(f"{result} has the ablation {ablation}; graphs patch from corrupt prompts")
    removed = [edge_label(d.edge) for d in saved_decisions(record) if not d.kept]
    if not removed:
        raise ConfigError(f"{result} keeps every edge; there is nothing to patch")
    return removed


def _refuse_other_model(result: Path, record: dict[str, Any], known: Description) -> NoReturn:
    """Refuse a result of another model than the graph's, and say how they differ."""
    name, count = record["model"]["name"], record["model"]["edges"]
    positional = any(entry["seq_idx"] is not None for entry in record["decisions"])
    if positional and known.seq_len is None:
        raise ConfigError(
            f"{result} has edges of single positions, the graph has none; export with --positional"
        )
    if not positional and known.seq_len is not None:
        raise ConfigError(
            f"{result} has no edges of single positions, the graph has; export without --positional"
        )
    if (name, count) != (known.source_model, known.n_edges):
        raise ConfigError(
            f"{result} is of {name} with {count:,} edges, the graph of {known.source_model} with "
            f"{known.n_edges:,}; export the model that was searched"
        )
    raise ConfigError(
        f"{result} was found in a model with other weights than the graph's; export that model"
    )


def table(found: dict[str, Any], most: int = 20) -> str:
    """Format a result as text, with the ``most`` runs of largest KL divergence."""
    lines = [
        f"{found['kind']} graph of {found['model']} on {found['providers'][0]}, "
        f"{counted(found['prompts'], 'prompt')}, mode {found['mode']}",
        f"{'edges':<40} {'KL':>12} {'logit diff':>12}",
    ]
    entries = [{"edges": ["(clean)"], **found["clean"]}]
    entries += sorted(found["runs"], key=lambda one: -one["kl_div"])[:most]
    for entry in entries:
        names = ", ".join(entry["edges"][:2]) + (", ..." if len(entry["edges"]) > 2 else "")
        difference = f"{entry['logit_diff']:12.4f}" if "logit_diff" in entry else f"{'-':>12}"
        lines.append(f"{names:<40} {entry['kl_div']:12.3e} {difference}")
    if len(found["runs"]) > most:
        lines.append(f"... {len(found['runs']) - most} more; --json lists all")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = argparse.ArgumentParser(
        prog="python -m pahq_exporters.run",
        description="Patch edges of an exported graph; imports numpy and onnxruntime only.",
    )
    made.add_argument("graph", type=Path, help="a file written by pahq export")
    made.add_argument("--prompts", type=Path, required=True, help="token ids in the host's JSON format")
    made.add_argument(
        "--edges", nargs="*", default=[], metavar="EDGE", help='edges such as "A0.1->MLP 2"'
    )
    made.add_argument(
        "--all", action="store_true", dest="all_edges", help="patch every edge, each alone"
    )
    made.add_argument("--each", action="store_true", help="patch each edge alone, not all together")
    made.add_argument("--result", type=Path, help="saved result: patch edges outside its circuit")
    made.add_argument("--head", default="auto", help="head in FP32: auto, none or LAYER.HEAD")
    made.add_argument("--limit", type=int, help="number of prompts to use")
    made.add_argument("--mode", default="speed", help="speed; memory keeps one byte per weight")
    made.add_argument("--provider", action="append", help="cpu, cuda or tensorrt; may be repeated")
    made.add_argument("--threads", type=int, help="threads per operation")
    made.add_argument("--json", action="store_true", help="print one JSON document")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    never_fail_printing()
    given = vars(parser().parse_args(arguments))
    as_json, debug = given.pop("json"), given.pop("debug")
    given["providers"] = given.pop("provider")
    try:
        if given["limit"] is not None and given["limit"] < 1:
            raise ConfigError(f"--limit {given['limit']} must be above 0")
        found = run(**given)
    except (PahqError, OSError, MemoryError) as error:
        if debug:
            raise
        message = str(error) if isinstance(error, PahqError) else one_line(error)
        print(f"error: {message or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(json.dumps(found, indent=1) if as_json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
