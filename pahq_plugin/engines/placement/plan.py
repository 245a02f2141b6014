"""How a memory budget is divided between weights, caches and passes, in order of priority.

1. The indispensable: small weights, what the metric needs, and a window through which the other weights
   move in and out of memory: three attention layers or MLPs, or the unembedding.
2. The low copies of a search that screens; if they do not fit, it measures in full precision.
3. The source outputs of all prompts; if they do not fit, they move in and out, too.
4. Passes: what they usually take, or a quarter of what is left.
5. Weights that stay, with the rest: the unembedding, then blocks from the last to the first, since
   every pass ends at the last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pahq_plugin.errors import ConfigError
from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.models.blocks import output_positions
from pahq_plugin.models.changes import plain_name
from pahq_plugin.models.checks import weight_parameters
from pahq_plugin.precision.config import PrecisionConfig

WINDOW = 3
"""Attention layers or MLPs that fit in the window; a product reads the weights of two at a time."""

SCALES = 1.02
"""Scales and padding enlarge low copies at most by this factor, with one scale per row."""

LEAST_PASSES = 13 * 2**19
"""The least bytes that passes take, on any device: an eighth of the usual on a CPU."""

EDGE_BYTES, BASE_BYTES = 1000, 16_000_000
"""Bytes of Python objects for each edge (measured: 600), and bytes of everything else that a search
adds to the process: objects (3,000,000), and code that runs for the first time."""

GPU_BYTES = 2**26
"""Bytes that products take on a GPU besides operands and results: workspaces of cuBLAS and cuBLASLt, at
most 32 MiB each."""

RESERVE = 0.03
"""Fraction of the budget reserved for what is not counted: tiny tensors, and allocators' overhead."""


@dataclass(frozen=True)
class Unit:
    """Weights that move in and out of memory together.

    Attributes:
        name: ``"embed"``, ``"blocks.3.attn"``, ``"blocks.3.mlp"`` or ``"unembed"``.
        parameters: its weights, without biases.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(p.nbytes for p in self.parameters)


@dataclass(frozen=True)
class Plan:
    """What goes where, in bytes.

    Attributes:
        max_memory: the budget.
        weights: all weights of the model.
        stay: names of units that stay in memory.
        staying: these units, and weights that belong to no unit.
        window: weights and caches that are in memory temporarily.
        low: low copies of weights; 0 if nothing is screened.
        caches: source outputs of all prompts.
        caches_stay: whether these stay in memory.
        passes: the rows of a pass, and memos of the present state.
        outputs: the metric's clean outputs, and a plain forward pass.
        screens: whether the search still screens.
    """

    max_memory: int
    weights: int
    stay: frozenset[str]
    staying: int
    window: int
    low: int
    caches: int
    caches_stay: bool
    passes: int
    outputs: int
    screens: bool

    @property
    def everything_stays(self) -> bool:
        """Whether no weight has to move in and out of memory."""
        return self.window == 0

    def __str__(self) -> str:
        rest = (
            "all weights stay in memory"
            if self.everything_stays
            else f"{_size(self.staying)} of {_size(self.weights)} of weights stay in memory, the others "
            f"are loaded when needed ({_size(self.window)} at a time)"
        )
        caches = "in memory" if self.caches_stay else "outside memory"
        low = f", low copies {_size(self.low)}" if self.low else ""
        return (
            f"max_memory {_size(self.max_memory)}: {rest}; source outputs {_size(self.caches)} {caches}"
            f"{low}, passes {_size(self.passes)}, outputs {_size(self.outputs)}"
        )


def units_of(model: PatchableModel) -> list[Unit]:
    """List the units of a model, those first that are most worth keeping in memory.

    A weight that several modules share belongs to no unit, and stays.
    """
    inner: Any = model.wrapped_model
    modules: dict[str, nn.Module] = {"unembed": inner.unembed}
    for layer in reversed(range(model.cfg.n_layers)):
        if not model.cfg.attn_only:
            modules[f"blocks.{layer}.mlp"] = model.blocks[layer].mlp
        modules[f"blocks.{layer}.attn"] = model.blocks[layer].attn
    modules["embed"] = inner.embed
    weights = {name: list(_matrices(module)) for name, module in modules.items()}
    uses = Counter(p for some in weights.values() for p in some)
    return [Unit(name, tuple(p for p in some if uses[p] == 1)) for name, some in weights.items()]


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weight matrices: no biases, weights of norms, or patch masks."""
    for name, parameter in module.named_parameters():
        if any(part.lstrip("_").startswith("W_") for part in name.split(".")):
            yield parameter


def plan_memory(
    model: PatchableModel,
    prompts: Sequence[PromptPairBatch],
    max_memory: int,
    precision: PrecisionConfig | None,
    usual_passes: int,
    means: bool = False,
) -> Plan:
    """Divide a memory budget.

    Args:
        model: a transformer.
        prompts: the batches that one process holds.
        max_memory: bytes in all.
        precision: precision in which the search would screen; ``None`` if it does not screen.
        usual_passes: bytes that passes take with enough memory.
        means: whether the ablation averages over the data set, which holds more source outputs at once.

    Raises:
        ConfigError: the budget is too small; the message gives the least that is enough.
    """
    needs = _needs(model, prompts, precision, usual_passes, means)
    usable = int(max_memory * (1 - RESERVE)) - needs.objects
    if needs.everything(usual_passes) <= usable:
        names = frozenset(unit.name for unit in units_of(model))
        return Plan(
            max_memory=max_memory, weights=needs.weights, stay=names, staying=needs.weights, window=0,
            low=needs.low, caches=needs.caches, caches_stay=True, passes=usual_passes,
            outputs=needs.outputs, screens=precision is not None,
        )  # fmt: skip
    if needs.least > usable:
        raise ConfigError(
            f"max_memory={max_memory} is too small for this model and these prompts: at least "
            f"{int((needs.least + needs.objects) / (1 - RESERVE)) + 1} bytes are needed, of which "
            f"{_size(needs.window)} for weights that are loaded when needed"
        )
    room = _Room(usable - needs.least)
    screens = precision is not None and room.take(needs.low + needs.starts)
    caches_stay = room.take(needs.caches)
    passes = max(needs.passes, min(usual_passes, needs.passes + room.left // 4))
    room.take(max(passes, needs.forward) - max(needs.passes, needs.forward))
    # The embedding is read only at the start.
    stay = [unit for unit in units_of(model) if unit.name != "embed" and room.take(unit.nbytes)]
    return Plan(
        max_memory=max_memory, weights=needs.weights, stay=frozenset(unit.name for unit in stay),
        staying=needs.small + sum(unit.nbytes for unit in stay), window=needs.window,
        low=needs.low if screens else 0, caches=needs.caches, caches_stay=caches_stay, passes=passes,
        outputs=needs.outputs, screens=screens,
    )  # fmt: skip


@dataclass(frozen=True)
class _Needs:
    """What a search needs, in bytes.

    Attributes:
        weights: all weights; ``small``: weights that belong to no unit.
        window: weights that are in memory temporarily.
        low: low copies of weights.
        starts: what screened candidates take from their destinations' inputs, when many are settled.
        caches: source outputs.
        passes: the least that passes take.
        kept: clean distributions.
        forward: a plain forward pass.
        objects: Python objects, or on a GPU the workspaces of products.
    """

    weights: int
    small: int
    window: int
    low: int
    starts: int
    caches: int
    passes: int
    kept: int
    forward: int
    objects: int

    @property
    def outputs(self) -> int:
        """Bytes of the clean distributions and a plain forward pass."""
        return self.kept + self.forward

    @property
    def least(self) -> int:
        """The least with which a search can run, objects excluded."""
        return self.small + self.window + self.kept + max(self.passes, self.forward)

    def everything(self, passes: int) -> int:
        """Return the bytes with which everything stays in memory, objects excluded."""
        return (
            self.weights + self.caches + self.low + self.starts + self.kept + max(passes, self.forward)
        )


def _needs(
    model: PatchableModel,
    prompts: Sequence[PromptPairBatch],
    precision: PrecisionConfig | None,
    usual_passes: int,
    means: bool,
) -> _Needs:
    cfg, units = model.cfg, units_of(model)
    weights = sum(p.nbytes for _, p in weight_parameters(model))
    runs = [_source_bytes(model, batch) for batch in prompts]
    tokens = sum(batch.clean.numel() for batch in prompts)
    on_cpu = prompts[0].clean.device.type == "cpu"
    return _Needs(
        weights=weights,
        small=weights - sum(unit.nbytes for unit in units),
        window=_window_bytes(units),
        low=_low_bytes(model, precision),
        starts=0 if precision is None else len(model.srcs) * tokens * cfg.d_model * cfg.dtype.itemsize,
        caches=(4 if means else 2) * sum(runs),
        passes=max(min(usual_passes, LEAST_PASSES), max(runs)),  # of one row at least
        kept=_output_bytes(model, prompts),
        forward=_forward_bytes(model, prompts),
        objects=BASE_BYTES + EDGE_BYTES * len(model.edges) if on_cpu else GPU_BYTES,
    )


@dataclass
class _Room:
    """Bytes that are still free."""

    left: int

    def take(self, nbytes: int) -> bool:
        """Take ``nbytes`` if there is room; return whether there was."""
        fits = nbytes <= self.left
        self.left -= nbytes if fits else 0
        return fits


def _window_bytes(units: Sequence[Unit]) -> int:
    """Return the bytes of the weights that are read at a time."""
    blocks = [unit.nbytes for unit in units if unit.name.startswith("blocks.")]
    return max(WINDOW * max(blocks), units[0].nbytes)


def _source_bytes(model: PatchableModel, batch: PromptPairBatch) -> int:
    """Return the bytes of the source outputs of one run of a batch."""
    cfg = model.cfg
    wide = cfg.d_model * (1 + (0 if cfg.attn_only else cfg.n_layers))
    return batch.clean.numel() * cfg.dtype.itemsize * (wide + cfg.n_layers * cfg.n_heads * cfg.d_head)


def _output_bytes(model: PatchableModel, prompts: Sequence[PromptPairBatch]) -> int:
    """Return the bytes of clean distributions in FP64 at the output positions."""
    numbers = 0
    for batch in prompts:
        positions, _ = output_positions(model, batch.clean.shape[1])
        numbers += len(batch.clean) * len(positions) * model.cfg.d_vocab_out
    return 8 * numbers


def _forward_bytes(model: PatchableModel, prompts: Sequence[PromptPairBatch]) -> int:
    """Return the bytes that a plain forward pass of the largest batch holds at a time: logits and
    tensors computed from them, or the widest block."""
    cfg = model.cfg
    largest = max((batch.clean for batch in prompts), key=lambda tokens: tokens.numel())
    tokens, length = largest.numel(), largest.shape[1]
    block = 6 * cfg.d_model + 4 * (cfg.d_mlp or 0) + 3 * cfg.n_heads * (length + cfg.d_head)
    return cfg.dtype.itemsize * tokens * max(block, 3 * cfg.d_vocab_out)


def _low_bytes(model: PatchableModel, precision: PrecisionConfig | None) -> int:
    """Return the bytes of all low copies of weights, including packed ones."""
    if precision is None:
        return 0
    nbytes = 0
    named = model.wrapped_model.named_parameters(remove_duplicate=False)  # each block has its own copy
    for name, parameter in ((plain_name(name), p) for name, p in named):
        part = _part_of(name)
        number_format = None if part is None else precision.format_of(*part)
        if number_format is not None and number_format.is_low:
            repeats = model.cfg.n_heads // len(parameter) if "._W_" in name else 1  # grouped keys
            nbytes += repeats * parameter.numel() * number_format.storage.itemsize
    return int(SCALES * nbytes)


def _part_of(name: str) -> tuple[str, int | None] | None:
    """Return the part and block that a weight belongs to, as `PrecisionConfig.format_of` takes them."""
    path = name.split(".")
    last = path[-1].lstrip("_")
    if name == "unembed.W_U":
        return "unembed", None
    if path[0] != "blocks" or not last.startswith("W_"):
        return None
    part = "mlp" if path[2] == "mlp" else "output" if last == "W_O" else "qkv"
    return part, int(path[1])


def _size(nbytes: float) -> str:
    """Format a number of bytes for people."""
    return f"{nbytes / 1e6:,.0f} MB" if nbytes < 1e10 else f"{nbytes / 1e9:,.1f} GB"


_PREFIXES = ("", "K", "M", "G", "T")


_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMGT]?)(i?)B?", re.IGNORECASE | re.ASCII)


def parse_bytes(size: int | str) -> int:
    """Parse bytes from a number, or text such as ``"24GB"`` (10^9), ``"1.5 GiB"`` (2^30) or ``"500MB"``.

    Raises:
        ConfigError: ``size`` is anything else, or not above 0.
    """
    nbytes = size if type(size) is int else 0
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is not None:
        number, prefix, binary = found.groups()
        base = 1024 if binary else 1000
        nbytes = int(float(number) * base ** _PREFIXES.index(prefix.upper()))
    if nbytes <= 0:
        raise ConfigError(f"max_memory={size!r} must be a size above 0, such as 24GB, 1.5GiB or 500MB")
    return nbytes
