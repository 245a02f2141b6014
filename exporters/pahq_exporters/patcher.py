"""``OnnxPatcher``: patching runs on an exported graph, with numpy and ONNX Runtime alone.

Edges are named as in the host. The head that an edge leads into is the investigated one: its FP32
weights are read from the file beside the graph and fed in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pahq_exporters.description import METADATA_KEY, SLOTS, from_json
from pahq_exporters.heads import Heads
from pahq_exporters.session import default_threads, open_session
from pahq_plugin.errors import ConfigError, ExportError, PromptError

Array = np.ndarray[Any, Any]
Head = tuple[int, int]

ROWS = 64
"""Prompts times candidates of one call, unless a single candidate has more."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that a patcher has checked, and what patched edges carry on them.

    Attributes:
        inputs: values of the graph's inputs by name, as ONNX Runtime holds them on its device.
        corrupt: ``[src, batch, pos, d_model]``; ``None`` for runs without patches.
        batch: prompts; ``length``: their tokens.
    """

    inputs: dict[str, Any]
    corrupt: Array | None
    batch: int
    length: int


class OnnxPatcher:
    """A loaded graph.

    Attributes:
        description: what the graph is.
        providers: the execution providers that it really runs on.

    Args:
        path: the graph.
        providers: ``["cuda"]``, ``["tensorrt", "cuda"]``, ...; ``None`` for the CPU.
        mode: ``"speed"``, or ``"memory"`` to keep one byte a weight, see `pahq_exporters.session`.
        threads: of one operation; ``None`` for ``OMP_NUM_THREADS``, or else ONNX Runtime's choice.
        level: of graph optimisation: ``"disable"``, ``"basic"``, ``"extended"`` or ``"all"``; by default
            the last for speed, the first for memory.

    Raises:
        ExportError: a missing, damaged or foreign file, or ONNX Runtime is not installed.
        ConfigError: an unknown provider, mode or level.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[str] | None = None,
        mode: Literal["speed", "memory"] = "speed",
        threads: int | None = None,
        level: str | None = None,
    ) -> None:
        self._path = Path(path)
        used = default_threads() if threads is None else threads
        self._session = open_session(self._path, providers, mode, used, level)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.description = from_json(metadata.get(METADATA_KEY), self._path)
        self._check_inputs()
        self.providers = list(self._session.get_providers())
        self._heads: Heads | None = None
        if self.description.heads_file is not None:
            self._heads = Heads(self._path.parent / self.description.heads_file, self.description)
        self._outputs: dict[tuple[str, tuple[int, ...]], Any] = {}

    def _check_inputs(self) -> None:
        """
        Raises:
            ExportError: the inputs are not those of the description.
        """
        known = self.description
        found = {each.name for each in self._session.get_inputs()}
        wanted = {"tokens"} if known.start_layer == 0 else {"residual", "earlier"}
        wanted |= {"corrupt", "mask"} if known.graph == "dense" else {
            "corrupt", "src", "dest_layer", "dest_slot", "hi_head"
        }  # fmt: skip
        if known.high == "input":
            wanted |= {"w_hi", "hi_head"} | ({"hi_layer"} if known.graph == "dense" else set())
        if found != wanted:
            raise ExportError(
                f"{self._path}: inputs {sorted(found)} do not fit its description, which has "
                f"{sorted(wanted)}; export it again"
            )

    def prompts(
        self,
        tokens: Any = None,
        corrupt: Any = None,
        *,
        residual: Any = None,
        earlier: Any = None,
    ) -> Prompts:
        """Check prompts and put them where the graph runs; worth while before several runs.

        Args:
            tokens: ids ``[batch, pos]``.
            corrupt: what patched edges carry: ids ``[batch, pos]`` of corrupt prompts, or outputs of
                sources ``[src, batch, pos, d_model]``; ``None`` if nothing will be patched.
            residual: for graphs that start at a later block: the residual stream before it, ``[batch,
                pos, d_model]``.
            earlier: for those, outputs of the sources before it, ``[src, batch, pos, d_model]``.

        Raises:
            PromptError: another shape or type, tokens outside the vocabulary, too many of them.
        """
        if self.description.start_layer:
            inputs = self._later_start(tokens, residual, earlier)
        elif residual is not None or earlier is not None:
            raise PromptError("this graph starts with tokens; give no residual or earlier outputs")
        else:
            inputs = {"tokens": self._tokens(tokens, "tokens")}
        first = inputs.get("tokens", inputs.get("residual"))
        assert first is not None
        batch, length = first.shape[:2]
        given = None if corrupt is None else self._corrupt(corrupt, batch, length)
        return Prompts(inputs, given, batch, length)

    def _later_start(self, tokens: Any, residual: Any, earlier: Any) -> dict[str, Array]:
        known = self.description
        if tokens is not None or residual is None or earlier is None:
            raise PromptError(
                f"this graph starts at block {known.start_layer}: give residual [batch, pos, "
                f"{known.d_model}] and earlier [{known.n_earlier}, batch, pos, {known.d_model}], "
                "and no tokens"
            )
        stream = self._floats(residual, "residual", (None, None, known.d_model))
        batch, length = stream.shape[:2]
        shape = (known.n_earlier, batch, length, known.d_model)
        return {"residual": stream, "earlier": self._floats(earlier, "earlier", shape)}

    def _tokens(self, tokens: Any, name: str) -> Array:
        known = self.description
        try:
            ids: Array = np.asarray(tokens)
        except ValueError:  # rows of different lengths
            ids = np.zeros(0, object)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
            raise PromptError(
                f"{name} must be token ids [batch, pos], all prompts of one length; "
                f"got {ids.dtype} of shape {list(ids.shape)}"
            )
        if ids.shape[1] > known.n_ctx:
            raise PromptError(
                f"{name}: {ids.shape[1]} tokens exceed the model's context of {known.n_ctx}"
            )
        if known.seq_len is not None and ids.shape[1] != known.seq_len:
            raise PromptError(
                f"{name}: {ids.shape[1]} tokens, but the graph has edges for {known.seq_len} positions"
            )
        if ids.min() < 0 or ids.max() >= known.d_vocab:
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise PromptError(f"{name}: id {wrong} is outside the vocabulary of {known.d_vocab}")
        return np.ascontiguousarray(ids, np.int64)

    def _corrupt(self, corrupt: Any, batch: int, length: int) -> Array:
        known = self.description
        shape = (len(known.sources), batch, length, known.d_model)
        if np.ndim(corrupt) == 2 and not known.start_layer:
            ids = self._tokens(corrupt, "corrupt")
            if ids.shape != (batch, length):
                raise PromptError(
                    f"corrupt prompts are {list(ids.shape)}, but the clean ones {[batch, length]}"
                )
            return self.sources(ids)
        return self._floats(corrupt, "corrupt", shape)

    @staticmethod
    def _floats(values: Any, name: str, shape: tuple[int | None, ...]) -> Array:
        array = np.asarray(values)
        wanted = ["any" if size is None else size for size in shape]
        fits = array.ndim == len(shape) and all(
            size in (None, got) for size, got in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind != "f":
            raise PromptError(
                f"{name} must be numbers of shape {wanted}; got {array.dtype} {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise PromptError(f"{name} holds NaN or infinity")
        return np.ascontiguousarray(array, np.float32)

    def sources(self, tokens: Any) -> Array:
        """What every source gives on prompts ``[batch, pos]``, ``[src, batch, pos, d_model]``; no head
        is in FP32 unless that is fixed."""
        known = self.description
        ids = self._tokens(tokens, "tokens")
        width = known.d_model
        inputs: dict[str, Any] = {"tokens": ids}
        if known.graph == "dense":
            inputs["mask"] = np.zeros((1, *known.mask_shape), np.float32)
            inputs["corrupt"] = np.zeros((len(known.sources), *ids.shape, width), np.float32)
        else:
            inputs |= {"src": np.zeros(1, np.int64), "dest_layer": -1, "dest_slot": -1}
            inputs["corrupt"] = np.zeros((1, *ids.shape, width), np.float32)
        inputs |= self._high(None)
        shape = (len(known.sources), *ids.shape, width)
        return self._run("sources", inputs, shape)

    def run(
        self,
        tokens: Any,
        corrupt: Any = None,
        edges: Iterable[Any] = (),
        *,
        mask: Any = None,
        head: Head | Literal["auto"] | None = "auto",
    ) -> Array:
        """Logits with some edges patched.

        Args:
            tokens: ids ``[batch, pos]``, or what `prompts` returned.
            corrupt: see `prompts`.
            edges: names of edges, or host ``Edge`` objects; they are patched together. A sweep graph
                takes one.
            mask: instead of ``edges``, what `mask` returns, or several such, ``[candidate, ...]``,
                for as many sets of edges in one run; dense graphs only.
            head: the head in FP32: ``"auto"`` for the one that all edges lead into, if there is one.

        Returns:
            ``[batch, (pos,) vocab]``, with an axis of candidates before it if ``mask`` has one.

        Raises:
            GraphError: no such edge or head.
            PromptError: prompts that do not fit, or nothing to patch with.
            ConfigError: a mask of another shape, or one for a sweep graph.
        """
        prompts = self._checked(tokens, corrupt)
        chosen = list(edges)
        if self.description.graph == "sweep":
            if mask is not None or len(chosen) != 1:
                raise ConfigError(
                    f"a sweep graph patches one edge at a time, not {len(chosen)}; give edges=[one], or "
                    "export a dense graph"
                )
            return self.run_each(prompts, edges=chosen)[0]
        if mask is None:
            masks = self.mask(chosen)[None]
            target = self.head_of(*chosen) if head == "auto" else head
            return self._candidates(prompts, masks, target)[0]
        if chosen:
            raise ConfigError("give edges or a mask, not both")
        masks = self._check_mask(mask)
        target = None if head == "auto" else head
        several = masks.ndim > len(self.description.mask_shape)
        logits = self._candidates(prompts, masks if several else masks[None], target)
        return logits if several else logits[0]

    def run_each(
        self,
        tokens: Any,
        corrupt: Any = None,
        edges: Iterable[Any] = (),
        *,
        head: Head | Literal["auto"] | None = "auto",
    ) -> Array:
        """Logits with each edge patched alone, ``[edge, batch, (pos,) vocab]``; arguments as of `run`.

        Edges into one head share a call, so give edges of one destination together.
        """
        prompts, chosen = self._checked(tokens, corrupt), list(edges)
        found = self.description.indices(chosen)
        if not found:
            raise ConfigError("edges is empty; name at least one edge")
        at_once = max(1, ROWS // prompts.batch)
        parts, start = [], 0
        while start < len(found):
            group = self._together(found, start, at_once)
            parts.append(self.feed(self.inputs_for(prompts, chosen[start : start + group], head=head)))
            start += group
        return np.concatenate(parts)

    def _together(self, found: list[tuple[int, ...]], start: int, most: int) -> int:
        """How many edges from ``start`` on one call can take: those into one destination."""
        size = 1
        while size < most and start + size < len(found) and found[start + size][-2] == found[start][-2]:
            size += 1
        return size

    def inputs_for(
        self,
        prompts: Prompts,
        edges: Sequence[Any],
        *,
        head: Head | Literal["auto"] | None = "auto",
    ) -> dict[str, Array]:
        """The graph's inputs, by name, for edges into one destination, each patched alone."""
        indices = self.description.indices(edges)
        if prompts.corrupt is None:
            raise PromptError("nothing to patch with; give corrupt prompts or outputs")
        if self.description.graph == "dense":
            masks = np.zeros((len(edges), *self.description.mask_shape), np.float32)
            for row, index in enumerate(indices):
                masks[(row, *index)] = 1
            target = self.head_of(edges[0]) if head == "auto" else head
            inputs = prompts.inputs | {"mask": masks, "corrupt": prompts.corrupt} | self._high(target)
        else:
            inputs = prompts.inputs | self._single_edges(prompts.corrupt, indices, head)
        return {name: _typed(value) for name, value in inputs.items()}

    def _single_edges(
        self,
        corrupt: Array,
        indices: list[tuple[int, ...]],
        head: Head | Literal["auto"] | None,
    ) -> dict[str, Any]:
        """Inputs of a sweep graph for edges into one destination."""
        dest = self.description.destinations[indices[0][0]]
        own = (dest.layer, dest.head) if dest.head >= 0 else None
        if head not in ("auto", own):
            raise ConfigError(f"a sweep graph keeps the head of its edge in FP32, {own}, not {head}")
        sources = np.array([src for _, src in indices])
        chosen = {"src": sources, "corrupt": corrupt[sources], "dest_layer": dest.layer}
        return chosen | {"dest_slot": SLOTS.index(dest.slot)} | self._high(own)

    def mask(self, edges: Iterable[Any]) -> Array:
        """1 for some edges, 0 for all others, ``[dest, src]``; ``[pos, dest, src]`` for edges of single
        positions.

        Raises:
            GraphError: no such edge.
        """
        mask = np.zeros(self.description.mask_shape, np.float32)
        for index in self.description.indices(edges):
            mask[index] = 1
        return mask

    def _check_mask(self, mask: Any) -> Array:
        array, one = np.asarray(mask), self.description.mask_shape
        fits = array.shape in (one, (len(array) if array.ndim else 0, *one))
        if not fits or not array.size:
            axes = "[dest, src]" if self.description.seq_len is None else "[pos, dest, src]"
            raise ConfigError(
                f"mask must be {axes} = {list(one)}, or several of these; got {list(array.shape)}"
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ConfigError("mask must hold finite numbers")
        return np.ascontiguousarray(array, np.float32)

    def _checked(self, tokens: Any, corrupt: Any) -> Prompts:
        if isinstance(tokens, Prompts):
            if corrupt is not None:
                raise ConfigError("corrupt belongs to patcher.prompts(...), whose result this is")
            return tokens
        return self.prompts(tokens, corrupt)

    def head_of(self, *edges: Any) -> Head | None:
        """The head that all of these edges lead into and that can be in FP32; ``None`` if there is none.

        Raises:
            GraphError: no such edge.
        """
        dests = {self.description.destinations[at[-2]] for at in self.description.indices(edges)}
        heads = {(dest.layer, dest.head) for dest in dests}
        if len(heads) != 1 or self.description.high != "input":
            return None
        layer, head = heads.pop()
        return None if head < 0 else (layer, head)

    def _candidates(self, prompts: Prompts, masks: Array, head: Head | None) -> Array:
        """Logits under each mask ``[candidate, dest, src]``, with one head in FP32."""
        corrupt = prompts.corrupt
        if corrupt is None:
            if masks.any():
                raise PromptError("nothing to patch with; give corrupt prompts or outputs")
            shape = (len(self.description.sources), prompts.batch, prompts.length)
            corrupt = np.zeros((*shape, self.description.d_model), np.float32)
        inputs = prompts.inputs | {"corrupt": corrupt} | self._high(head)
        at_once = max(1, ROWS // prompts.batch)
        parts = [masks[i : i + at_once] for i in range(0, len(masks), at_once)]
        return np.concatenate([self.feed(inputs | {"mask": part}) for part in parts])

    def _high(self, head: Head | None) -> dict[str, Any]:
        """The inputs that choose the head in FP32."""
        known = self.description
        if head is not None:
            head = known.check_head(head)
        if known.high != "input":
            if known.graph == "sweep":
                return {"hi_head": 0 if head is None else head[1]}
            if head is not None and head != known.fixed_head:
                fixed = "has none" if known.fixed_head is None else f"is fixed to {known.fixed_head}"
                raise ConfigError(f"head={head}: the head in FP32 of this graph {fixed}")
            return {}
        assert self._heads is not None
        layer, index = (-1, 0) if head is None else head
        empty = np.zeros((4, known.d_model, known.d_head), np.float32)
        weights = empty if head is None else self._heads.weights(*head)
        chosen = {"hi_head": index, "w_hi": weights}
        return chosen | ({"hi_layer": layer} if known.graph == "dense" else {})

    def feed(self, inputs: dict[str, Any]) -> Array:
        """Logits from the graph's inputs by name, ``[candidate or edge, batch, (pos,) vocab]``."""
        known = self.description
        batch, length = inputs["tokens" if known.start_layer == 0 else "residual"].shape[:2]
        seen = {"all": (length,), "last": (), "not_first": (length - 1,)}[known.positions]
        rows = len(inputs["mask" if known.graph == "dense" else "src"])
        return self._run("logits", inputs, (rows, batch, *seen, known.d_vocab_out))

    def _run(self, output: str, inputs: dict[str, Any], shape: tuple[int, ...]) -> Array:
        """One output of the graph. Only what it depends on is computed."""
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, _typed(value))
        buffer = self._outputs.get((output, shape))
        if buffer is None:
            self._outputs = {k: v for k, v in self._outputs.items() if k[0] != output}
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32)
            self._outputs[output, shape] = buffer
        binding.bind_ortvalue_output(output, buffer)
        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True
        self._session.run_with_iobinding(binding, options)
        return np.array(buffer.numpy())


def _typed(value: Any) -> Array:
    """As the graph wants it: integers of 64 bits, rows one behind the other."""
    array = np.asarray(value, order="C")
    return array.astype(np.int64) if array.dtype.kind in "iu" else array
