"""Load a problem by name, with everything that a search needs.

The host is imported only when a problem is loaded, since that takes seconds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from pahq_plugin.errors import ProblemError, PromptError, one_line
from pahq_plugin.problems import bundled_model, tracr, vocabulary
from pahq_plugin.problems.generated import TASKS, generate
from pahq_plugin.problems.prompt_files import KEYS, Encoder, as_token_ids, read_prompts
from pahq_plugin.problems.templates import TEXT_TASKS, text_prompts

if TYPE_CHECKING:
    from pahq_plugin.host.tasks import Task
    from pahq_plugin.host.types import Edge, PatchableModel, PromptDataLoader
    from pahq_plugin.models.load import HookedTransformer

log = logging.getLogger(__name__)

BUNDLED = "bundled"
TRAIN_BATCHES, TEST_BATCHES = 4, 8
DEFAULT_BATCH = {BUNDLED: 8, "hub": 16, "tracr-reverse": 11, "tracr-xproportion": 64}
TRACR_BATCHES = {"tracr-reverse": 11, "tracr-xproportion": 8}  # train and test each, as in the host


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, its prompts, and how to evaluate circuits on them.

    Attributes:
        name: as given to ``load_problem``.
        model: factorized host model, shared only with ``task``.
        train_loader: batches to search on.
        test_loader: batches to evaluate on; it shares no prompt with ``train_loader``.
        metric: name of the loss that suits the model's output.
        true_edges: the published circuit; None if there is none.
        task: the problem as a host ``Task``, registered in its ``TASK_DICT`` under ``task.key``.
        note: one line on how text became token ids; empty if prompts are token ids.
    """

    name: str
    model: PatchableModel
    train_loader: PromptDataLoader
    test_loader: PromptDataLoader
    metric: Literal["kl_div", "mse"]
    true_edges: set[Edge] | None
    task: Task
    note: str = ""

    def __repr__(self) -> str:
        """Describe the problem in one line; a dataclass would print the whole model."""
        train, test = len(self.train_loader), len(self.test_loader)
        known = "no circuit known" if self.true_edges is None else "its circuit is known"
        return (
            f"<Problem: {self.name}, {len(self.model.edges):,} edges, {train} train and {test} test "
            f"batches of {self.train_loader.batch_size} prompts, {self.metric}, {known}>"
        )


@dataclass(frozen=True)
class _Ingredients:
    """The parts that differ between bundled, hub and Tracr problems."""

    model: HookedTransformer
    model_name: str
    prompts: dict[str, Any]
    batch_size: int
    n_batches: tuple[int, int]
    metric: Literal["kl_div", "mse"] = "kl_div"
    slice_output: Literal["last_seq", "not_first_seq"] = "last_seq"
    published: bool = False  # whether these are the published weights of that name
    note: str = ""


def problem_names() -> list[str]:
    """Return the problem names that ``load_problem`` accepts."""
    return [*TASKS, "docstring", *TRACR_BATCHES]


def load_problem(
    name: str,
    *,
    model: str | Path | None = None,
    prompts: str | Path | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    positional: bool = False,
    separate_qkv: bool = True,
    device: str | None = None,
    on_disk: bool = False,
    bos: bool | None = None,
) -> Problem:
    """Build a problem with a new model.

    Args:
        name: one of ``problem_names()``.
        model: the TransformerLens name of a hub model, such as ``"gpt2"``, or a folder: a Hugging Face
            model (`from_hugging_face`; write ``"./gpt2"`` if the name is ambiguous), or one that
            `save_model` wrote, whose weights are read from disk on use. Folders have no official
            circuit. None is the bundled model (``docstring``: ``"attn-only-4l"``). Tracr problems have
            their own model.
        prompts: a prompt file in the host's JSON format that replaces the generated prompts; a third
            of its batches is for the search. Text for the bundled model is split at white space.
        batch_size: prompts per batch; None = 8, for hub models 16, for Tracr as in the host's tasks.
        seed: seed of the prompts; with a file, of their order.
        positional: give each token position its own edges. Tracr problems always do.
        separate_qkv: make a head's query, key and value separate destinations. Official circuits
            require it.
        device: where the model and the batches are; None = ``cuda`` if available, else ``cpu``.
        on_disk: leave the weights of a model that `save_model` wrote in their files, whatever the
            device, for ``discover(max_memory=...)``.
        bos: whether to prepend the BOS token to text prompts; None = as the model's configuration says
            (``default_prepend_bos``; off for Qwen).

    Raises:
        ProblemError: the problem, model or device is unknown, or they do not fit each other.
        ModelError: the folder does not exist, the model cannot be converted, or memory is short.
        PromptError: the prompt file cannot be used.
    """
    if name not in problem_names():
        raise ProblemError(f"no problem {name!r}; the known ones are {', '.join(problem_names())}")
    is_count = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if batch_size is not None and not (is_count and batch_size > 0):
        raise ProblemError(f"batch_size must be an integer above 0, not {batch_size!r}")
    from pahq_plugin.models.record import stored_name
    from pahq_plugin.system.memory import memory_shortage_named

    device = _usable(device)
    with memory_shortage_named():
        if name in TRACR_BATCHES:
            _refuse_for_tracr(name, model, prompts, bos)
            parts, positional = _tracr_parts(name, batch_size, seed, device), True
        else:
            model = model or ("attn-only-4l" if name == "docstring" else BUNDLED)
            if model == BUNDLED or stored_name(model) == bundled_model.config()["model_name"]:
                parts = _bundled_parts(name, model, prompts, batch_size, seed, device, bos)
            else:
                parts = _hub_parts(name, model, prompts, batch_size, seed, positional, device, bos)
        if not on_disk:
            parts.model.to(device, print_details=False)  # the others are there already
    return _assemble(name, parts, positional, separate_qkv, device)


def _assemble(
    name: str, parts: _Ingredients, positional: bool, separate_qkv: bool, device: str
) -> Problem:
    from pahq_plugin.host import tasks
    from pahq_plugin.models.adapt import adapt

    train, test = tasks.loaders(parts.prompts, parts.batch_size, parts.n_batches, device)
    patchable = adapt(
        parts.model,
        slice_output=parts.slice_output,
        seq_len=train.seq_len if positional else None,
        separate_qkv=separate_qkv,
    )
    words = parts.prompts["word_idxs"]
    true_edges = tasks.official_edges(name, patchable, words) if parts.published else None
    task = tasks.register_task(
        name=name,
        key=f"pahq: {name} ({parts.model_name})",
        model=patchable,
        train_loader=train,
        test_loader=test,
        true_edges=true_edges,
        slice_output=parts.slice_output,
    )
    if parts.note:
        log.info(parts.note)
    return Problem(name, patchable, train, test, parts.metric, true_edges, task, parts.note)


def _bundled_parts(
    name: str,
    folder: str | Path,
    prompts: str | Path | None,
    batch_size: int | None,
    seed: int,
    device: str,
    bos: bool | None,
) -> _Ingredients:
    from pahq_plugin.models.on_disk import open_model

    if name not in TASKS:
        raise ProblemError(
            f"the bundled model was not trained on {name}, only on {', '.join(TASKS)}; "
            "name a hub model, such as attn-only-4l"
        )
    batch_size = batch_size or DEFAULT_BATCH[BUNDLED]
    if prompts is None:
        if bos is not None:
            _refuse_bos(name)
        wanted, note = batch_size * (TRAIN_BATCHES + TEST_BATCHES), ""
        data = generate(name, wanted, seed, "test")  # held out from training
    else:
        encoder = replace(bundled_model.encoder(), **({"bos": None} if bos is False else {}))
        file = read_prompts(prompts)
        note = _about_bos(file, encoder, vocabulary.BOS)
        data = _shuffled(as_token_ids(file, encoder), seed)
    model = bundled_model.load(device) if folder == BUNDLED else open_model(folder)
    n_batches = _batches(data, batch_size, model.cfg.n_ctx)
    return _Ingredients(model, BUNDLED, data, batch_size, n_batches, note=note)


def _hub_parts(
    name: str,
    model_name: str | Path,
    prompts: str | Path | None,
    batch_size: int | None,
    seed: int,
    positional: bool,
    device: str,
    bos: bool | None,
) -> _Ingredients:
    from pahq_plugin.models import load as models
    from pahq_plugin.models.record import stored_name

    if prompts is None and name not in TEXT_TASKS:
        raise ProblemError(
            f"{name} has no published prompts for the model {str(model_name)!r}; "
            "pass prompts=FILE, or leave model out for the bundled one"
        )
    file = None if prompts is None else read_prompts(prompts)
    batch_size = batch_size or DEFAULT_BATCH["hub"]
    model = models.any_model(model_name, device)
    _check_tokenizer(model_name, model, file)
    published = not models.is_folder(model_name) and stored_name(model_name) is None
    if not published:
        model_name = str(model.cfg.model_name)
    if file is None:
        wanted = batch_size * (TRAIN_BATCHES + TEST_BATCHES)
        file = text_prompts(name, model.tokenizer, wanted, seed, aligned=positional)
    encoder = _hub_encoder(model, bos)
    data = _shuffled(as_token_ids(file, encoder), seed)
    n_batches = _batches(data, batch_size, model.cfg.n_ctx)
    note = _about_bos(file, encoder, getattr(model.tokenizer, "bos_token", None))
    return _Ingredients(
        model, str(model_name), data, batch_size, n_batches, published=published, note=note
    )


def _tracr_parts(name: str, batch_size: int | None, seed: int, device: str) -> _Ingredients:
    from pahq_plugin.models import load as models

    key = cast(tracr.TracrKey, name.removeprefix("tracr-"))
    data = tracr.tracr_prompts(key, seed)
    size = batch_size or DEFAULT_BATCH[name]
    n = TRACR_BATCHES[name] if batch_size is None else len(data["prompts"]) // size // 2
    if n < 1:
        raise ProblemError(
            f"batch_size {size} is too large: {name} has {len(data['prompts'])} prompts in all, "
            "half of them for testing"
        )
    return _Ingredients(
        model=models.tracr_model(key, device),
        model_name="tracr",
        prompts=data,
        batch_size=size,
        n_batches=(n, n),
        metric="mse",
        slice_output="not_first_seq",
        published=True,
    )


def store_model(name: str, folder: str | Path, force: bool = False) -> int:
    """Store a model that `load_problem` accepts, or the bundled one, in a folder for `open_model`.

    Returns:
        Size of its weights in bytes.

    Raises:
        ProblemError: the model is unknown or cannot be loaded.
        ModelError: it cannot be stored, or the folder already holds a model and ``force`` is off.
    """
    from pahq_plugin.models.load import any_model
    from pahq_plugin.models.on_disk import save_model

    model = bundled_model.load() if name == BUNDLED else any_model(name)
    save_model(model, folder, force=force)
    return sum(parameter.nbytes for parameter in model.parameters())


def _check_tokenizer(folder: str | Path, model: HookedTransformer, file: dict[str, Any] | None) -> None:
    """Refuse prompts of text for a folder without a tokenizer."""
    if model.tokenizer is not None:
        return
    entries = [] if file is None else file["prompts"]
    given = [entry.get(key) for entry in entries if isinstance(entry, dict) for key in KEYS]
    words = [word for value in given for word in (value if isinstance(value, list) else [value])]
    if file is None or any(isinstance(word, str) for word in words):
        raise PromptError(
            f"{folder} has no tokenizer.json, and prompts are text; write one with "
            "tokenizer.save_pretrained(FOLDER), or pass prompts of token ids"
        )


def _hub_encoder(model: HookedTransformer, bos: bool | None) -> Encoder:
    """Return the encoder of a hub model; refuse ``bos`` if its tokenizer has no BOS token."""
    tokenizer: Any = model.tokenizer
    if tokenizer is None:  # all prompts are token ids
        return Encoder(encode=lambda text: [], bos=None, d_vocab=model.cfg.d_vocab)
    if bos and tokenizer.bos_token_id is None:
        raise ProblemError("the model's tokenizer has no BOS token; leave out bos (--bos)")
    in_front = model.cfg.default_prepend_bos if bos is None else bos
    return Encoder(
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        bos=tokenizer.bos_token_id if in_front else None,
        d_vocab=model.cfg.d_vocab,
    )


def _about_bos(file: dict[str, Any], encoder: Encoder, token: str | None) -> str:
    """Say in one line whether text gets a BOS token; empty if no prompt is text."""
    prompts = [entry.get("clean") for entry in file["prompts"] if isinstance(entry, dict)]
    if not any(isinstance(prompt, str) for prompt in prompts):
        return ""
    if encoder.bos is None:
        return "text prompts get no BOS token; --bos (bos=True) prepends it"
    return f"text prompts get the BOS token {token!r} in front; --no-bos (bos=False) leaves it out"


def _batches(data: dict[str, Any], batch_size: int, n_ctx: int) -> tuple[int, int]:
    """Return the numbers of train batches, a third of all but at least one, and of test batches."""
    length = len(data["prompts"][0]["clean"])
    if length > n_ctx:
        raise PromptError(f"the prompts have {length} tokens; the model reads at most {n_ctx}")
    whole = len(data["prompts"]) // batch_size
    if whole < 2:
        smaller = ", or pass a smaller batch_size (--batch-size)" if batch_size > 1 else ""
        raise PromptError(
            f"too few prompts for a train and a test batch of {batch_size}: {len(data['prompts'])}; "
            f"provide at least {2 * batch_size}{smaller}"
        )
    train = max(1, whole // 3)
    return train, whole - train


def _shuffled(data: dict[str, Any], seed: int) -> dict[str, Any]:
    prompts = list(data["prompts"])
    Random(f"order/{seed}").shuffle(prompts)
    return {**data, "prompts": prompts}


def _refuse_for_tracr(
    name: str, model: str | Path | None, prompts: str | Path | None, bos: bool | None
) -> None:
    if model is not None:
        raise ProblemError(f"{name} has its own model; leave model out (it was {str(model)!r})")
    if prompts is not None:
        raise ProblemError(f"{name} has its own prompts; leave prompts out")
    if bos is not None:
        _refuse_bos(name)


def _refuse_bos(name: str) -> NoReturn:
    """Refuse ``bos`` for a problem whose prompts are token ids, with a `ProblemError`."""
    raise ProblemError(
        f"the prompts of {name} are token ids; bos (--bos, --no-bos) is for prompts of text"
    )


def _usable(device: str | None) -> str:
    """Return the device by its full name, by default a GPU if there is one; refuse an unusable one."""
    import torch

    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # With its index, since TransformerLens reads "cuda" as the first GPU, not as the current one.
        found = torch.zeros(1, device=wanted).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise ProblemError(
            f"device={device!r} cannot be used here ({one_line(error)}); 'cpu' always can"
        ) from error
    if found.type == "meta":
        raise ProblemError(f"device={device!r} cannot be used here (it stores no values); 'cpu' can")
    return "cpu" if found.type == "cpu" else str(found)
