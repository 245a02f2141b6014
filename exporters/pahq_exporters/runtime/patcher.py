"""``OnnxPatcher``: patched runs of an exported graph, with only numpy and ONNX Runtime.

Edges are named as in the host. The head that an edge leads into is the investigated head: its FP32
weights are read from the file beside the graph and fed in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pahq_exporters.description import SLOTS, Description
from pahq_exporters.inputs import misfit
from pahq_exporters.runtime.arrays import Array, as_array, check_length, floats, masks, token_ids
from pahq_exporters.runtime.graph_runner import GraphRunner, typed
from pahq_exporters.runtime.heads import Heads
from pahq_plugin.errors import ConfigError, GraphError, PromptError

Head = tuple[int, int]

ROWS = 64
"""Most prompts times candidates of one call, unless a single candidate has more."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that a patcher has checked, and the values that patched edges carry on them.

    Attributes:
        graph: id of the graph that they were checked for.
        inputs: input of the graph -> array.
        corrupt: ``[src, batch, pos, d_model]``; ``None`` for runs without patches.
        batch: number of prompts.
        length: tokens per prompt.
    """

    graph: str
    inputs: dict[str, Any]
    corrupt: Array | None
    batch: int
    length: int


class OnnxPatcher:
    """A loaded graph.

    Attributes:
        description: the graph's description.
        providers: the execution providers in use.

    Args:
        path: the graph.
        providers: ``["cuda"]``, ``["tensorrt", "cuda"]``, ...; ``None`` for the CPU.
        mode: ``"speed"``, or ``"memory"`` to keep one byte per weight, see `pahq_exporters.session`.
        threads: threads per operation; ``None`` for ``OMP_NUM_THREADS``, or else ONNX Runtime's choice.
        level: graph optimisation: ``"disable"``, ``"basic"``, ``"extended"`` or ``"all"``; by default
            ``"all"`` for speed, ``"disable"`` for memory.

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
        """Check prompts once for several runs.

        Args:
            tokens: ids ``[batch, pos]``.
            corrupt: values that patched edges carry: ids ``[batch, pos]`` of corrupt prompts, or outputs
                of sources ``[src, batch, pos, d_model]``; ``None`` if nothing will be patched.
            residual: for graphs that start at a later block: the residual stream before it, ``[batch,
                pos, d_model]``.
            earlier: for those graphs: outputs of the sources before the block, ``[src, batch, pos,
                d_model]``.

        Raises:
            PromptError: a wrong shape or type, ids outside the vocabulary, or too many tokens.
        """
        if self.description.start_layer:
            inputs = self._later_start(tokens, residual, earlier)
        elif residual is not None or earlier is not None:
            raise PromptError("this graph starts with tokens; give no residual or earlier outputs")
        else:
            inputs = {"tokens": self._tokens(tokens, "tokens")}
        batch, length = next(iter(inputs.values())).shape[:2]
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
        corrupt = as_array(corrupt, "corrupt")
        if corrupt.ndim == 2 and not known.start_layer:
            ids = self._tokens(corrupt, "corrupt")
            if ids.shape != (batch, length):
                raise PromptError(
                    f"corrupt prompts are {list(ids.shape)}, but the clean ones {[batch, length]}"
                )
            return self.sources(ids)
        return floats(corrupt, "corrupt", (len(known.sources), batch, length, known.d_model))

    def sources(self, tokens: Any) -> Array:
        """Return the outputs of all sources on prompts ``[batch, pos]``, ``[src, batch, pos, d_model]``.

        No head is in FP32, except one fixed at export.

        Raises:
            PromptError: invalid tokens, or a graph that starts at a later block.
        """
        known = self.description
        if known.start_layer:
            raise PromptError(f"this graph starts at block {known.start_layer} and takes no tokens")
        ids = self._tokens(tokens, "tokens")
        shape = (len(known.sources), *ids.shape, known.d_model)
        nothing = np.zeros(shape, np.float32)
        inputs = {"tokens": ids} | self._high(None)
        if known.graph == "dense":
            inputs |= {"mask": np.zeros((1, *known.mask_shape), np.float32), "corrupt": nothing}
        else:
            inputs |= {"src": [0], "dest_layer": -1, "dest_slot": -1, "corrupt": nothing[:1]}
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
        """Return logits with some edges patched.

        Args:
            tokens: ids ``[batch, pos]``, or the result of `prompts`.
            corrupt: see `prompts`.
            edges: names of edges, or host ``Edge`` objects, patched together. A sweep graph takes one.
            mask: instead of ``edges``, the result of `mask`, or several, ``[candidate, ...]``, to run
                several sets of edges at once; dense graphs only.
            head: the head in FP32; ``"auto"`` for the one that all edges lead into, if there is one.

        Returns:
            ``[batch, (pos,) vocab]``, after a candidate axis if ``mask`` has one.

        Raises:
            GraphError: no such edge or head.
            PromptError: invalid prompts, or nothing to patch with.
            ConfigError: a mask of the wrong shape, or a mask for a sweep graph.
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
        """Return logits with each edge patched alone, ``[edge, batch, (pos,) vocab]``; see `run`.

        Consecutive edges into one destination share a call, so keep them together.
        """
        prompts, chosen = self._checked(tokens, corrupt), _listed(edges)
        found = self.description.indices(chosen)
        if not found:
            raise ConfigError("edges is empty; name at least one edge")
        at_once, parts = max(1, ROWS // prompts.batch), []
        for _, group in groupby(zip(found, chosen, strict=True), key=lambda pair: pair[0][-2]):
            own = [edge for _, edge in group]
            for i in range(0, len(own), at_once):
                parts.append(self.feed(self.inputs_for(prompts, own[i : i + at_once], head=head)))
        return np.concatenate(parts)

    def inputs_for(
        self,
        prompts: Prompts,
        edges: Sequence[Any],
        *,
        head: Head | Literal["auto"] | None = "auto",
    ) -> dict[str, Array]:
        """Return the graph's inputs, by name, for edges into one destination, each patched alone.

        Raises:
            ConfigError: no edge, or edges into several destinations.
            PromptError: the prompts have no corrupt values.
        """
        prompts = self._checked(prompts, None)
        indices = self.description.indices(_listed(edges))
        if len({index[-2] for index in indices}) != 1:
            raise ConfigError("give one or more edges into one destination")
        if prompts.corrupt is None:
            raise PromptError("nothing to patch with; give corrupt prompts or outputs")
        inputs: dict[str, Any] = {"corrupt": prompts.corrupt}
        if self.description.graph == "dense":
            inputs["mask"] = np.zeros((len(edges), *self.description.mask_shape), np.float32)
            for row, index in enumerate(indices):
                inputs["mask"][(row, *index)] = 1
            target = _chosen(head, self.head_of(edges[0]))
        else:
            dest = self.description.destinations[indices[0][0]]
            target = (dest.layer, dest.head) if dest.head >= 0 else None
            asked = _chosen(head, target)
            if (None if asked is None else self.description.check_head(asked)) != target:
                raise ConfigError(
                    f"a sweep graph keeps the head of its edge in FP32, {target}, not {head}"
                )
            sources = np.array([src for _, src in indices])
            inputs = {"src": sources, "corrupt": prompts.corrupt[sources], "dest_layer": dest.layer}
            inputs["dest_slot"] = SLOTS.index(dest.slot)
        inputs |= prompts.inputs | self._high(target)
        return {name: typed(value) for name, value in inputs.items()}

    def mask(self, edges: Iterable[Any]) -> Array:
        """Return 1 for ``edges`` and 0 for all others, float32 ``[dest, src]``; ``[pos, dest, src]`` for
        edges of single positions.

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
                raise ConfigError(
                    "these prompts were checked already; pass corrupt to patcher.prompts(...)"
                )
            if tokens.graph != self.description.id:
                raise PromptError(
                    "these prompts were checked for another graph; call this patcher's prompts()"
                )
            return tokens
        return self.prompts(tokens, corrupt)

    def head_of(self, *edges: Any) -> Head | None:
        """Return the head that all edges lead into; ``None`` if there is none that can be in FP32.

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
        """Return logits under each mask ``[candidate, dest, src]``, with one head in FP32."""
        known, corrupt = self.description, prompts.corrupt
        if corrupt is None:
            if masks.any():
                raise PromptError("nothing to patch with; give corrupt prompts or outputs")
            shape = (len(known.sources), prompts.batch, prompts.length, known.d_model)
            corrupt = np.zeros(shape, np.float32)
        inputs = prompts.inputs | {"corrupt": corrupt} | self._high(head)
        at_once = max(1, ROWS // prompts.batch)
        parts = [masks[i : i + at_once] for i in range(0, len(masks), at_once)]
        return np.concatenate([self.feed(inputs | {"mask": part}) for part in parts])

    def _high(self, head: Head | None) -> dict[str, Any]:
        """Return the inputs that choose the head in FP32."""
        known = self.description
        if head is not None:
            head = known.check_head(head)
        layer, index = (-1, 0) if head is None else head
        if self._heads is not None:
            empty = np.zeros((4, known.d_model, known.d_head), np.float32)
            chosen = {"hi_head": index, "w_hi": empty if head is None else self._heads.weights(*head)}
            return chosen | ({"hi_layer": layer} if known.graph == "dense" else {})
        if known.graph == "sweep":
            return {"hi_head": index}
        if head not in (None, known.fixed_head):
            fixed = "no head" if known.fixed_head is None else f"only head {known.fixed_head}"
            raise ConfigError(f"head={head}: this graph has {fixed} in FP32")
        return {}

    def feed(self, inputs: dict[str, Any]) -> Array:
        """Return logits for named inputs of the graph, ``[candidate or edge, batch, (pos,) vocab]``.

        Raises:
            ConfigError: wrong names, types or shapes of inputs.
        """
        known = self.description
        inputs = {k: typed(as_array(value, k, ConfigError)) for k, value in inputs.items()}
        wrong = misfit(known, {name: (str(a.dtype), list(a.shape)) for name, a in inputs.items()})
        if wrong:
            raise ConfigError(f"not inputs of this graph: {wrong}")
        batch, length = inputs["tokens" if known.start_layer == 0 else "residual"].shape[:2]
        seen = {"all": (length,), "last": (), "not_first": (length - 1,)}[known.positions]
        rows = len(inputs["mask" if known.graph == "dense" else "src"])
        return self._runner.run("logits", inputs, (rows, batch, *seen, known.d_vocab_out))


def _listed(edges: Any) -> list[Any]:
    """Return edges as a list, or refuse a single edge and values that are not iterable."""
    if isinstance(edges, (str, bytes)) or not isinstance(edges, Iterable):
        raise GraphError(f"edges={edges!r} must be a list of edges")
    return list(edges)


def _chosen(head: Head | Literal["auto"] | None, auto: Head | None) -> Head | None:
    """Return ``head``, or ``auto`` if it is ``"auto"``."""
    return auto if isinstance(head, str) and head == "auto" else head
