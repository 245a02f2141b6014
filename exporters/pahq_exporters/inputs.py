"""Names, types and shapes of a graph's inputs and outputs; imports only the standard library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pahq_exporters.description import Description


class Value(NamedTuple):
    """An input or output; a string in its shape names a size known only at run time."""

    name: str
    dtype: str
    shape: list[int | str]


def inputs(described: Description) -> list[Value]:
    """Return the inputs in order."""
    width, values = described.d_model, []
    length = "pos" if described.seq_len is None else described.seq_len
    if described.start_layer == 0:
        values.append(Value("tokens", "int64", ["batch", length]))
    else:
        values.append(Value("residual", "float32", ["batch", length, width]))
        values.append(Value("earlier", "float32", [described.n_earlier, "batch", length, width]))
    if described.graph == "dense":
        n_sources = len(described.sources)
        values.append(Value("mask", "float32", ["candidate", *described.mask_shape]))
        values.append(Value("corrupt", "float32", [n_sources, "batch", length, width]))
        if described.high == "input":
            values += [Value("hi_layer", "int64", []), Value("hi_head", "int64", [])]
    else:
        values.append(Value("src", "int64", ["edge"]))
        values.append(Value("corrupt", "float32", ["edge", "batch", length, width]))
        values += [Value(name, "int64", []) for name in ("dest_layer", "dest_slot", "hi_head")]
    if described.high == "input":
        values.append(Value("w_hi", "float32", [4, width, described.d_head]))
    return values


def outputs(described: Description) -> list[Value]:
    """Return the outputs in order."""
    first = "candidate" if described.graph == "dense" else "edge"
    length = "pos" if described.seq_len is None else described.seq_len
    seen = {"all": [length], "last": [], "not_first": ["pos_from_1"]}[described.positions]
    rows = "candidate_batch" if described.graph == "dense" else "batch"
    sources = [len(described.sources), rows, length, described.d_model]
    return [
        Value("logits", "float32", [first, "batch", *seen, described.d_vocab_out]),
        Value("sources", "float32", sources),
    ]


def misfit(described: Description, found: Mapping[str, tuple[str, Sequence[Any]]]) -> str | None:
    """Say what is wrong with inputs of those types and shapes; ``None`` if nothing is.

    Sizes with one name must be equal.
    """
    wanted = {value.name: value for value in inputs(described)}
    if found.keys() != wanted.keys():
        return f"inputs are {sorted(found)} instead of {sorted(wanted)}"
    sizes: dict[Any, Any] = {}
    for name, value in wanted.items():
        dtype, shape = found[name]
        fits = len(shape) == len(value.shape) and all(
            got == (sizes.setdefault(size, got) if isinstance(size, str) else size)
            for size, got in zip(value.shape, shape, strict=True)
        )
        if dtype != value.dtype or not fits:
            return f"{name} is {dtype} {list(shape)} instead of {value.dtype} {value.shape}"
    return None
