"""The command ``pahq discover``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pahq_plugin import choices
from pahq_plugin.choices import CHECKPOINT_EVERY, DEFAULT_THRESHOLD
from pahq_plugin.cli import options
from pahq_plugin.cli.early import CHECKPOINT, check_folder, check_problem, how_to_go_on
from pahq_plugin.cli.output import one_line_errors, print_result
from pahq_plugin.errors import ConfigError
from pahq_plugin.system.launch import launched


def discover(
    context: typer.Context,
    problem: Annotated[str, options.argument(choices.PROBLEMS, "A bundled problem, for example ioi.")],
    model: options.Model = None,
    prompts: options.Prompts = None,
    method: Annotated[
        str, options.option(choices.METHODS, "pahq, acdc, eap, ... or a host key.")
    ] = "pahq",
    threshold: Annotated[float, typer.Option(help="Smaller effects are pruned.")] = DEFAULT_THRESHOLD,
    metric: Annotated[
        str | None,
        options.option(choices.METRICS, "kl_div, mse or logit_diff; default: the problem's."),
    ] = None,
    ablation: options.Ablation = "resample",
    engine: Annotated[
        str, options.option((*choices.ENGINES, "onnx"), "auto, incremental, host or onnx.")
    ] = "auto",
    low: Annotated[str | None, options.option(choices.FORMATS, "Number format of heads.")] = None,
    mlp: Annotated[str | None, options.option(choices.FORMATS, "Number format of MLPs.")] = None,
    scale: Annotated[str | None, options.option(choices.SCALES, "row, head, tensor or none.")] = None,
    policy: Annotated[str | None, options.option(choices.POLICIES, "Which parts stay in FP32.")] = None,
    parts: Annotated[
        str | None,
        options.list_option(choices.PARTS, "What --low applies to: qkv,output,scores,values,unembed."),
    ] = None,
    weights: Annotated[
        str | None, options.option(("int4",), "int4: store weights of int8 parts in 4 bits.")
    ] = None,
    activations: Annotated[
        str | None, options.option(("high", "low"), "high: round weights only.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Error budget of --policy hybrid.")] = None,
    guard: Annotated[
        str | None, typer.Option(help="Guard band: auto or a number; inf re-decides all.")
    ] = None,
    kernel: Annotated[
        str | None, options.option(choices.KERNELS, "auto, eager or native products.")
    ] = None,
    batches: Annotated[int, typer.Option(help="Loader batches to average over; 0 for all.")] = 1,
    batch_size: options.BatchSize = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if available.")
    ] = None,
    n_edges: Annotated[
        int | None, typer.Option(help="Wanted number of edges; searches find the threshold.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Points of eap-ig between ablated and clean; default: 5.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop scored edges off all paths from input to output.")
    ] = False,
    refine: Annotated[
        int | None, typer.Option(help="Screened edges that eactp measures again in FP32.")
    ] = None,
    positional: options.Positional = False,
    bos: options.Bos = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and the search.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to resume from; default: one in the --out folder.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints.", min=0)
    ] = CHECKPOINT_EVERY,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory limit, for example 8GB; other weights stay on disk.")
    ] = None,
    out: options.Out = None,
    force: options.Force = False,
    top: options.Top = 20,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Find the circuit of PROBLEM and print its strongest edges."""
    with one_line_errors(debug, how_to_go_on(checkpoint, out)), launched() as world:
        check_folder(out, force)
        check_problem(problem, prompts)
        if batches < 0:
            raise ConfigError(f"--batches={batches} must be 0 (all batches) or a number above 0")
        from pahq_plugin.discovery.discover import discover as run
        from pahq_plugin.discovery.methods import get_method
        from pahq_plugin.problems import load_problem
        from pahq_plugin.system.progress import say

        chosen = get_method(method)
        uses = chosen.uses
        _refuse_unused(context, method, uses)
        loaded = load_problem(
            problem,
            model=model,
            prompts=prompts,
            batch_size=batch_size,
            seed=seed,
            positional=positional,
            device=device,
            on_disk=max_memory is not None,
            bos=bos,
        )
        talks = world.is_first and not as_json
        say(loaded.note, shown=bool(loaded.note) and talks)
        whole, size = len(loaded.train_loader), loaded.train_loader.batch_size
        if prompts is not None and 0 < batches < whole:
            say(f"taking {batches} of {whole} batches of {size}; --batches 0 takes all", shown=talks)
        own = out / CHECKPOINT if out is not None and "checkpoint" in uses else None
        result = run(
            loaded.model,
            loaded.train_loader,
            method=method,
            threshold=threshold,
            metric=metric or chosen.default_metric or (loaded.metric if "metric" in uses else None),
            ablation=ablation,
            precision=_precision(loaded.model, context.params),
            engine=engine,
            batches=batches or None,
            true_edges=loaded.true_edges if "true_edges" in uses else None,
            n_edges=n_edges,
            steps=steps,
            prune=prune,
            refine=refine,
            checkpoint=checkpoint or own,
            progress=not as_json,
            seed=seed,
            checkpoint_every=checkpoint_every,
            max_memory=max_memory,
        )
        if not world.is_first:
            return
        if out is not None:
            result.save(out, force=force)
            if own is not None and checkpoint is None:
                for file in (own, *own.parent.glob(f"{own.name}.[0-9]")):  # of a search for a size
                    file.unlink(missing_ok=True)
        print_result(result.record(), asdict(result.stats), top, as_json, saved=out)


OPTIONS = {
    "precision": (
        "low", "mlp", "scale", "policy", "parts", "weights", "activations", "budget", "guard", "kernel",
    ),
    "checkpoint": ("checkpoint", "checkpoint_every"),
} | {
    name: (name,)
    for name in (
        "threshold", "metric", "ablation", "engine", "n_edges", "refine", "steps", "prune", "max_memory",
    )
}  # fmt: skip
"""Argument of `discover` -> its flags, for arguments that not every method uses."""


def _refuse_unused(context: typer.Context, method: str, uses: Collection[str]) -> None:
    """Refuse options that the method does not use."""
    useless = [flag for name, flags in OPTIONS.items() if name not in uses for flag in flags]
    given = options.flags_given(context, useless)
    if given:
        others = [flag for name, flags in OPTIONS.items() if name in uses for flag in flags]
        usable = ", ".join(sorted(f"--{flag.replace('_', '-')}" for flag in others))
        raise ConfigError(f"method {method!r} cannot use {', '.join(given)}; it uses {usable}")


def _precision(model: Any, flags: Mapping[str, Any]) -> Any:
    """Return the device's default precision changed by the given flags; ``None`` if there are none."""
    changes = {name: flags[name] for name in OPTIONS["precision"] if flags[name] is not None}
    if not changes:
        return None
    if "parts" in changes:
        changes["parts"] = tuple(filter(None, changes["parts"].split(",")))
    if "guard" in changes:
        changes["guard"] = _guard(changes["guard"])
    from pahq_plugin.models.checks import model_device
    from pahq_plugin.precision.config import default_precision

    return replace(default_precision(model_device(model)), **changes)


def _guard(text: str) -> str | float:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise ConfigError(f"--guard {text!r} must be auto or a number, for example 0.3") from None
