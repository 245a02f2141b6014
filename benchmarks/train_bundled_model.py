"""Train the bundled language model on a CPU, in minutes.

Run it as ``python -m benchmarks.train_bundled_model``. One model learns the three bundled tasks
from prompts of the split "train"; the accuracies in its card are measured on prompts of the split
"test". The same arguments on the same machine and versions give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer

import pahq_plugin.problems
from pahq_plugin.problems import vocabulary
from pahq_plugin.problems.generated import TASKS, generate

CONFIG: dict[str, Any] = {
    "model_name": "pahq-bundled-4l",
    "n_layers": 4,
    "n_heads": 8,
    "d_model": 128,
    "d_head": 16,
    "d_mlp": 512,
    "n_ctx": 32,
    "d_vocab": len(vocabulary.WORDS),
    "act_fn": "gelu",
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
}
DEFAULT_FOLDER = Path(pahq_plugin.problems.__file__).parent / "bundled"


@dataclass(frozen=True)
class Lesson:
    """One batch of prompts and what the model should say to them.

    Attributes:
        tokens: token ids, padded on the right, int64 ``[batch pos]``.
        rows, positions: where a prediction is asked for, int64 ``[prediction]`` each.
        targets: probabilities of the next word, float32 ``[prediction vocab]``.
        last: of these predictions, those that are a prompt's answer, int64 ``[batch]``.
    """

    tokens: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    last: Tensor


def main() -> None:
    """Read the command line, train, measure, and write the three files."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    model = train(
        arguments.steps, arguments.batch, arguments.seed, arguments.learning_rate, arguments.writing_cost
    )
    seconds = time.perf_counter() - started
    measured = {task: measure(model, task, arguments.test_prompts) for task in TASKS}
    print(json.dumps({"seconds": round(seconds), "held_out": measured}, indent=2))
    write_bundle(arguments, model, seconds, measured)


def train(
    steps: int, batch: int, seed: int, learning_rate: float, writing_cost: float
) -> HookedTransformer:
    """A model trained for ``steps`` steps of ``batch`` prompts, a third of each task.

    AdamW with a linear warm-up and a cosine decay. In the middle half of the steps each head and MLP
    pays for the norm of what it writes, so that those that a task does not need fall silent and its
    circuit is small. The prompts of a step follow from ``seed`` and the step alone.
    """
    model = _new_model(seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_up_then_cosine(steps))
    with _progress() as progress:
        bar = progress.add_task("training", total=steps, loss=math.nan)
        for step, lesson in enumerate(_lessons(steps, batch, seed)):
            cost = writing_cost if 0.3 * steps <= step < 0.8 * steps else 0.0
            loss = _loss(model, lesson, cost)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress.update(bar, advance=1, loss=loss.item())
            if (step + 1) % max(1, steps // 10) == 0:
                progress.console.print(f"step {step + 1}: {_accuracies(model)}")
    return model.eval()


def measure(model: HookedTransformer, task: str, n: int) -> dict[str, float]:
    """How good the answers to ``n`` held-out prompts are, as shares.

    Returns:
        ``accuracy``: the likeliest word is right; ``separation``: every right word is likelier than
        every wrong one, of the whole vocabulary; ``probability``: mean sum over the right words.
    """
    lesson = _lesson({task: n}, seed=0, split="test")
    with torch.inference_mode():
        logits = model(lesson.tokens)[lesson.rows, lesson.positions][lesson.last]
    right = lesson.targets[lesson.last] > 0
    least_right = logits.masked_fill(~right, math.inf).amin(-1)
    most_wrong = logits.masked_fill(right, -math.inf).amax(-1)
    measured = {
        "accuracy": right.gather(1, logits.argmax(-1, keepdim=True)).float().mean(),
        "separation": (least_right > most_wrong).float().mean(),
        "probability": (logits.softmax(-1) * right).sum(-1).mean(),
    }
    return {name: round(value.item(), 4) for name, value in measured.items()}


def write_bundle(
    arguments: argparse.Namespace,
    model: HookedTransformer,
    seconds: float,
    measured: dict[str, dict[str, float]],
) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``MODEL_CARD.md`` to the output folder."""
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    metadata = {
        "seed": str(arguments.seed),
        "steps": str(arguments.steps),
        "batch": str(arguments.batch),
        "vocabulary_sha256": vocabulary.digest(),
    }
    config = json.dumps(CONFIG, indent=2) + "\n"
    card = _card(arguments, seconds, measured)
    _replace(folder / "model.safetensors", lambda path: save_file(weights, path, metadata))
    _replace(folder / "config.json", lambda path: path.write_text(config, encoding="utf-8"))
    _replace(folder / "MODEL_CARD.md", lambda path: path.write_text(card, encoding="utf-8"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_bundled_model",
        description="Train the language model that pahq_plugin ships and write it with its card.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=126, help="prompts a step, a third of each task")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the prompts")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument(
        "--writing-cost", type=float, default=0.005, help="of what heads and MLPs write, in the middle"
    )
    parser.add_argument("--test-prompts", type=int, default=1000, help="held-out prompts a task")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder to write to")
    return parser.parse_args()


def _new_model(seed: int) -> HookedTransformer:
    return HookedTransformer({**CONFIG, "seed": seed, "device": "cpu"})


def _warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    warm_up = min(200, max(1, steps // 10))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return factor


def _lessons(steps: int, batch: int, seed: int) -> Iterator[Lesson]:
    counts = {task: max(1, batch // len(TASKS)) for task in TASKS}
    for step in range(steps):
        yield _lesson(counts, seed=seed * 1_000_003 + step, split="train")


def _lesson(counts: dict[str, int], seed: int, split: Any) -> Lesson:
    tokens: list[list[int]] = []
    asked: list[tuple[int, int, list[int]]] = []
    last: list[int] = []
    for task, n in counts.items():
        for prompt in generate(task, n, seed, split)["prompts"]:
            row, clean = len(tokens), prompt["clean"]
            tokens.append(clean)
            if task == "induction":
                asked += [(row, at, [clean[at + 1]]) for at in _repeated_positions(clean)]
            last.append(len(asked))
            asked.append((row, len(clean) - 1, prompt["answers"]))
    return _as_tensors(tokens, asked, last)


def _repeated_positions(clean: list[int]) -> range:
    """Positions, but for the last, of words that have been there before."""
    return range(clean.index(clean[1], 2), len(clean) - 1)


def _as_tensors(
    tokens: list[list[int]], asked: list[tuple[int, int, list[int]]], last: list[int]
) -> Lesson:
    width = max(map(len, tokens))
    # Attention is causal: what stands behind the last position asked for changes nothing.
    padded = [row + [0] * (width - len(row)) for row in tokens]
    targets = torch.zeros(len(asked), len(vocabulary.WORDS))
    for index, (_, _, answers) in enumerate(asked):
        # Where several answers are right, the mean over all: a random one in expectation.
        targets[index, answers] = 1 / len(answers)
    return Lesson(
        tokens=torch.tensor(padded),
        rows=torch.tensor([row for row, _, _ in asked]),
        positions=torch.tensor([position for _, position, _ in asked]),
        targets=targets,
        last=torch.tensor(last),
    )


def _loss(model: HookedTransformer, lesson: Lesson, writing_cost: float) -> Tensor:
    """Cross-entropy, one number: answers and other predictions weigh half of the loss each; plus
    ``writing_cost`` times `_written`."""
    with _writers(model) as written:
        logits = model(lesson.tokens)[lesson.rows, lesson.positions]
    losses = torch.nn.functional.cross_entropy(logits, lesson.targets, reduction="none")
    loss = (losses.mean() + losses[lesson.last].mean()) / 2
    return loss + writing_cost * _written(model, written) if writing_cost else loss


@contextmanager
def _writers(model: HookedTransformer) -> Iterator[dict[str, Tensor]]:
    """Collects each head's value mix and each MLP's output of the forwards in the ``with`` block."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: outputs.update({name: output})

    points = {
        name: module
        for name, module in model.named_modules()
        if name.endswith((".attn.hook_z", ".hook_mlp_out"))
    }
    handles = [point.register_forward_hook(keep(name)) for name, point in points.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _written(model: HookedTransformer, outputs: dict[str, Tensor]) -> Tensor:
    """Sum over heads and MLPs of the root mean square over tokens of the norm they write."""
    total = torch.zeros(())
    for name, output in outputs.items():
        if name.endswith("hook_z"):
            weight = model.blocks[int(name.split(".")[1])].attn.W_O
            output = torch.einsum("bphd,hdm->hbpm", output, weight).flatten(1, 2)
        else:
            output = output.flatten(0, 1)[None]
        total = total + output.square().sum(-1).mean(-1).add(1e-8).sqrt().sum()
    return total


def _accuracies(model: HookedTransformer) -> str:
    measured = {task: measure(model, task, 200) for task in TASKS}
    return ", ".join(f"{task} {values['accuracy']:.1%}" for task, values in measured.items())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, then rename it into place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _card(arguments: argparse.Namespace, seconds: float, measured: dict[str, dict[str, float]]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformer-lens"))
    rows = "\n".join(
        f"| {task} | {' | '.join(f'{value:.1%}' for value in values.values())} |"
        for task, values in measured.items()
    )
    return f"""# The bundled model

A small transformer that does three tasks of mechanistic interpretability on a vocabulary of
{len(vocabulary.WORDS)} words, so that circuits can be found in it in minutes and without a hub.
It is of no other use.

| | |
|---|---|
| architecture | {_architecture()} |
| parameters | {_new_model(0).cfg.n_params:,} without embeddings; float32 |
| data | seeded prompts of `pahq_plugin/problems/generated.py`, split "train", a third of each task |
| loss | cross-entropy at the answer (greater-than: the mean over all right years; \
induction: every repeated position, too) |
| optimiser | AdamW, learning rate {arguments.learning_rate:g} with warm-up and cosine decay, \
gradients clipped at norm 1 |
| sparsity | in the middle half of the steps the loss holds {arguments.writing_cost:g} times the norms \
of what heads and MLPs write, so that circuits are small |
| steps | {arguments.steps:,} of {arguments.batch} prompts |
| seed | {arguments.seed} |
| time | {seconds:.0f} s on {arguments.threads} thread(s) of {_processor()} |
| versions | Python {platform.python_version()}, {packages} |

## Accuracy
On {arguments.test_prompts:,} prompts a task of the split "test": names, places and years are those
of training, but no combination of them (induction: no sequence) was trained on.

*Right before wrong*: every right word is likelier than every wrong one. *Probability*: of all right
words together.

| task | the likeliest word is right | right before wrong | probability |
|---|---|---|---|
{rows}

Greater-than has as many right words as there are later years, and "99" is always one of them, so
that only its other two columns say something.

## Make it again
```
python -m benchmarks.train_bundled_model --steps {arguments.steps} --batch {arguments.batch} \
--seed {arguments.seed} --learning-rate {arguments.learning_rate:g} \
--writing-cost {arguments.writing_cost:g}
```
"""


def _architecture() -> str:
    return (
        f"{CONFIG['n_layers']} layers, {CONFIG['n_heads']} heads of {CONFIG['d_head']}, "
        f"d_model {CONFIG['d_model']}, d_mlp {CONFIG['d_mlp']}, {CONFIG['act_fn']}, LayerNorm, "
        f"learned positions, n_ctx {CONFIG['n_ctx']}"
    )


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


if __name__ == "__main__":
    main()
