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

from pahq_exporters.description import SLOTS, Description
from pahq_exporters.inputs import misfits
from pahq_exporters.runtime.arrays import Array, as_array, check_length, floats, masks, token_ids
from pahq_exporters.runtime.graph_runner import GraphRunner, typed
from pahq_exporters.runtime.heads import Heads
from pahq_plugin.errors import ConfigError, GraphError, PromptError

Head = tuple[int, int]

ROWS = 64
"""Prompts times candidates of one call, unless a single candidate has more."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that a patcher has checked, and what patched edges carry on them.

    Attributes:
        graph: the id of the graph that they were checked for.
        inputs: values of the graph's inputs by name, as ONNX Runtime holds them on its device.
        corrupt: ``[src, batch, pos, d_model]``; ``None`` for runs without patches.
        batch: prompts; ``length``: their tokens.
    """

    graph: str
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
        *,
        providers: Sequence[str] | None = None,
        mode: Literal["speed", "memory"] = "speed",
        threads: int | None = None,
        level: str | None = None,
    ) -> None:
        file = Path(path)
        self._runner = GraphRunner(file, providers, mode, threads, level)
        self.description: Description = self._runner.description
        self.providers: list[str] = self._runner.providers
        self._heads: Heads | None = None
        if self.description.heads_file is not None:
            self._heads = Heads(file.parent / self.description.heads_file, self.description)

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
        if length == 1 and self.description.positions == "not_first":
            raise PromptError("prompts have 1 token, but this graph's logits leave the first one out")
        given = None if corrupt is None else self._corrupt(corrupt, batch, length)
        return Prompts(self.description.id, inputs, given, batch, length)

    def _later_start(self, tokens: Any, residual: Any, earlier: Any) -> dict[str, Array]:
        known = self.description
        if tokens is not None or residual is None or earlier is None:
            raise PromptError(
                f"this graph starts at block {known.start_layer}: give residual [batch, pos, "
                f"{known.d_model}] and earlier [{known.n_earlier}, batch, pos, {known.d_model}], "
                "and no tokens"
            )
        stream = floats(residual, "residual", (None, None, known.d_model))
        batch, length = stream.shape[:2]
        check_length("residual", length, known.n_ctx, known.seq_len)
        shape = (known.n_earlier, batch, length, known.d_model)
        return {"residual": stream, "earlier": floats(earlier, "earlier", shape)}

    def _tokens(self, tokens: Any, name: str) -> Array:
        known = self.description
        return token_ids(tokens, name, known.n_ctx, known.d_vocab, known.seq_len)

    def _corrupt(self, corrupt: Any, batch: int, length: int) -> Array:
        known = self.description
        shape = (len(known.sources), batch, length, known.d_model)
        corrupt = as_array(corrupt, "corrupt")
        if corrupt.ndim == 2 and not known.start_layer:
            ids = self._tokens(corrupt, "corrupt")
            if ids.shape != (batch, length):
                raise PromptError(
                    f"corrupt prompts are {list(ids.shape)}, but the clean ones {[batch, length]}"
                )
            return self.sources(ids)
        return floats(corrupt, "corrupt", shape)

    def sources(self, tokens: Any) -> Array:
        """What every source gives on prompts ``[batch, pos]``, ``[src, batch, pos, d_model]``; no head
        is in FP32 unless that is fixed.

        Raises:
            PromptError: tokens that do not fit, or a graph that starts at a later block.
        """
        known = self.description
        if known.start_layer:
            raise PromptError(f"this graph starts at block {known.start_layer} and takes no tokens")
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
        return self._runner.run("sources", inputs, shape)

    def run(
        self,
        tokens: Any,
        corrupt: Any = None,
        *,
        edges: Iterable[Any] = (),
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
        prompts, chosen = self._checked(tokens, corrupt), _listed(edges)
        if self.description.graph == "sweep":
            if mask is not None or len(chosen) != 1:
                raise ConfigError(
                    f"a sweep graph patches one edge at a time, not {len(chosen)}; give edges=[one], or "
                    "export a dense graph"
                )
            return self.run_each(prompts, edges=chosen, head=head)[0]
        if mask is None:
            target = _chosen(head, self.head_of(*chosen))
            return self._candidates(prompts, self.mask(chosen)[None], target)[0]
        if chosen:
            raise ConfigError("give edges or a mask, not both")
        found = masks(mask, self.description.mask_shape)
        target = _chosen(head, None)
        several = found.ndim > len(self.description.mask_shape)
        logits = self._candidates(prompts, found if several else found[None], target)
        return logits if several else logits[0]

    def run_each(
        self,
        tokens: Any,
        corrupt: Any = None,
        *,
        edges: Iterable[Any] = (),
        head: Head | Literal["auto"] | None = "auto",
    ) -> Array:
        """Logits with each edge patched alone, ``[edge, batch, (pos,) vocab]``; arguments as of `run`.

        Edges into one head share a call, so give edges of one destination together.
        """
        prompts, chosen = self._checked(tokens, corrupt), _listed(edges)
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
        """The graph's inputs, by name, for edges into one destination, each patched alone.

        Raises:
            ConfigError: no edge, or edges into several destinations.
        """
        prompts = self._checked(prompts, None)
        indices = self.description.indices(_listed(edges))
        if len({index[-2] for index in indices}) != 1:
            raise ConfigError("give edges into one destination, at least one")
        if prompts.corrupt is None:
            raise PromptError("nothing to patch with; give corrupt prompts or outputs")
        if self.description.graph == "dense":
            alone = np.zeros((len(edges), *self.description.mask_shape), np.float32)
            for row, index in enumerate(indices):
                alone[(row, *index)] = 1
            target = _chosen(head, self.head_of(edges[0]))
            inputs = prompts.inputs | {"mask": alone, "corrupt": prompts.corrupt} | self._high(target)
        else:
            inputs = prompts.inputs | self._single_edges(prompts.corrupt, indices, head)
        return {name: typed(value) for name, value in inputs.items()}

    def _single_edges(
        self,
        corrupt: Array,
        indices: list[tuple[int, ...]],
        head: Head | Literal["auto"] | None,
    ) -> dict[str, Any]:
        """Inputs of a sweep graph for edges into one destination."""
        dest = self.description.destinations[indices[0][0]]
        own = (dest.layer, dest.head) if dest.head >= 0 else None
        asked = _chosen(head, own)
        if (None if asked is None else self.description.check_head(asked)) != own:
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
        for index in self.description.indices(_listed(edges)):
            mask[index] = 1
        return mask

    def _checked(self, tokens: Any, corrupt: Any) -> Prompts:
        if isinstance(tokens, Prompts):
            if corrupt is not None:
                raise ConfigError("corrupt belongs to patcher.prompts(...), whose result this is")
            if tokens.graph != self.description.id:
                raise PromptError("these prompts were checked for another graph; call prompts() here")
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
        """Logits from the graph's inputs by name, ``[candidate or edge, batch, (pos,) vocab]``.

        Raises:
            ConfigError: inputs of other names or shapes.
        """
        known = self.description
        inputs = {k: typed(as_array(value, k, ConfigError)) for k, value in inputs.items()}
        misfit = misfits(known, {name: (str(a.dtype), list(a.shape)) for name, a in inputs.items()})
        if misfit:
            raise ConfigError(f"not inputs of this graph: {misfit[0]}")
        batch, length = inputs["tokens" if known.start_layer == 0 else "residual"].shape[:2]
        seen = {"all": (length,), "last": (), "not_first": (length - 1,)}[known.positions]
        rows = len(inputs["mask" if known.graph == "dense" else "src"])
        return self._runner.run("logits", inputs, (rows, batch, *seen, known.d_vocab_out))


def _listed(edges: Any) -> list[Any]:
    """
    Raises:
        GraphError: a single edge, or nothing that edges could be in.
    """
    if isinstance(edges, (str, bytes)) or not isinstance(edges, Iterable):
        raise GraphError(f"edges={edges!r} must be a list of edges")
    return list(edges)


def _chosen(head: Head | Literal["auto"] | None, auto: Head | None) -> Head | None:
    """``head``, or what it stands for."""
    return auto if isinstance(head, str) and head == "auto" else head
