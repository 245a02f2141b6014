"""The dense graph: any set of edges patched at once, for several sets (*candidates*) in one run.

=============  ===========================  ========================================================
input          shape                        ..
=============  ===========================  ========================================================
``tokens``     ``[batch, pos]``             of int64; with ``start_layer``: ``residual [batch, pos,
                                            d_model]`` before that block, and ``earlier [src, batch,
                                            pos, d_model]``, the outputs of the sources before it
``mask``       ``[candidate, dest, src]``   1 where an edge is patched, 0 elsewhere; ``[candidate, pos,
                                            dest, src]`` for edges of single positions
``corrupt``    ``[src, batch, pos,          what a patched edge carries instead
               d_model]``
``hi_layer``   ``[]``                       of int64; block of the investigated head, -1 for none
``hi_head``    ``[]``                       of int64; its index
``w_hi``       ``[4, d_model, d_head]``     its FP32 weights, see `pahq_exporters.graph.high`
=============  ===========================  ========================================================

Outputs are ``logits [candidate, batch, (pos,) vocab]`` and ``sources [src, candidate * batch, pos,
d_model]``, the outputs of all sources in this run.

As in the host, a destination reads the residual stream of the run plus, for every patched edge, the
corrupt output of the source minus its actual output:
``x[dest] = residual + sum_s mask[dest, s] (corrupt[s] - out[s])``.
Candidates, prompts and positions are flattened into rows, ``[candidate * batch * pos, d_model]``.
"""

from __future__ import annotations

from collections.abc import Callable

from pahq_exporters.description import Description
from pahq_exporters.graph.builder import Builder
from pahq_exporters.graph.high import fed_weights, packed_weights
from pahq_exporters.graph.parts import Parts
from pahq_plugin.host import PatchableModel
from pahq_plugin.precision.config import PrecisionConfig


class Dense(Parts):
    """Builds the dense graph of one model."""

    def __init__(
        self, build: Builder, model: PatchableModel, described: Description, precision: PrecisionConfig
    ) -> None:
        super().__init__(build, model, described, precision)
        self.slots = 3 if model.separate_qkv else 1
        self._batch = build.dimension(self.first_input, 0)
        self._pos = build.dimension(self.first_input, 1)
        self._candidates = build.dimension("mask", 0)
        rows, cfg = build.op("Mul", self._candidates, self._batch), self.cfg
        self._split_shape = build.shape(cfg.n_heads, -1, self._pos, cfg.d_head)
        self._source_shape = build.shape(-1, rows, self._pos, cfg.d_model)
        # [candidate, src, batch * pos * d_model], by position [candidate, pos, src, batch * d_model]
        self._deltas = ""
        self._sources: list[str] = []  # [some, candidate * batch, pos, d_model] each
        self._seen = 0
        self._read = 0

    def fill(self) -> dict[str, str]:
        """Add all nodes; returns the values of the outputs by name."""
        build, cfg = self.build, self.cfg
        self.prepare()
        residual = self._start()
        for layer in range(self.described.start_layer, cfg.n_layers):
            with build.scope(f"blocks.{layer}"):
                residual = self._block(layer, residual)
        residual = self._patched(residual, 1, self._seen)
        shape = build.shape(self._candidates, self._batch, self._pos, cfg.d_model)
        logits = self.logits(build.op("Reshape", residual, shape))
        return {"logits": logits, "sources": build.op("Concat", *self._sources, axis=0)}

    def _start(self) -> str:
        """Return the residual stream before the first block, ``[row, d_model]``."""
        build, width, n_earlier = self.build, self.cfg.d_model, self.described.n_earlier
        x = self.start()
        many = build.shape(self._candidates, 1, 1, 1)
        x = build.reshape(build.op("Expand", build.unsqueeze(x, 0), many), -1, width)
        if n_earlier == 0:
            self._add_sources(build.unsqueeze(x, 0), 1)
        else:
            earlier = build.unsqueeze("earlier", 1)
            earlier = build.op("Expand", earlier, build.shape(1, self._candidates, 1, 1, 1))
            self._add_sources(build.reshape(earlier, n_earlier, -1, width), n_earlier)
        return x

    def _block(self, layer: int, residual: str) -> str:
        """Map the residual stream before a block to that after it, ``[row, d_model]``."""
        build, cfg = self.build, self.cfg
        before = self._seen
        with build.scope("attn"):
            result = self._heads(layer, residual)
            self._add_sources(result, cfg.n_heads)
            total = build.op("ReduceSum", result, build.integers(0), keepdims=0)
            bias = self.parameter(f"blocks.{layer}.attn.b_O")
            attended = build.op("Add", build.op("Add", residual, total), bias)
        if cfg.attn_only:
            return attended
        with build.scope("mlp"):
            read, reads = (residual, before) if cfg.parallel_attn_mlp else (attended, self._seen)
            out = self.mlp(layer, build.squeeze(self._patched(read, 1, reads), 0))
            self._add_sources(build.unsqueeze(out, 0), 1)
            return build.op("Add", attended, out)

    def _heads(self, layer: int, residual: str) -> str:
        """Return the output of each head, ``[head, row, d_model]``."""
        build, cfg, name = self.build, self.cfg, f"blocks.{layer}.attn"
        used = self.precision.format_of("qkv", layer)
        x = self._patched(residual, self.slots * cfg.n_heads, self._seen)
        x = self.norm(f"blocks.{layer}.ln1", x)
        inputs = build.ops("Split", 3, x, axis=0, num_outputs=3) if self.slots == 3 else [x] * 3
        low_inputs = [self.rounding.activation(each, used, 0) for each in inputs]
        low = []
        for letter, each in zip("QKV", low_inputs, strict=True):
            weight = self.weight(f"{name}.W_{letter}", used)
            bias = self.parameter(f"{name}.b_{letter}")
            product = build.op("MatMul", each, weight)
            low.append(build.op("Add", product, build.unsqueeze(bias, 1)))

        def high(weights: list[str], head: str) -> list[str]:
            """Return query, key and value of the investigated head, ``[row, d_head]`` each."""
            made = []
            for letter, x, weight in zip("QKV", inputs, weights[:3], strict=True):
                own = build.squeeze(build.op("Gather", x, head, axis=0), 0)
                bias = build.op("Gather", f"{name}.b_{letter}", head, axis=0)
                made.append(build.op("Add", build.op("MatMul", own, weight), bias))
            return made

        qkv = self._with_high_head(layer, low, high)
        q, k, v = (build.op("Reshape", value, self._split_shape) for value in qkv)
        z = build.reshape(self.attend(layer, q, k, v, rank=4), cfg.n_heads, -1, cfg.d_head)
        return self._written(layer, z)

    def _written(self, layer: int, z: str) -> str:
        """Project attended values ``[head, row, d_head]`` to head outputs ``[head, row, d_model]``."""
        build, used = self.build, self.precision.format_of("output", layer)
        weight = self.weight(f"blocks.{layer}.attn.W_O", used)
        low = build.op("MatMul", self.rounding.activation(z, used, 0), weight)

        def high(weights: list[str], head: str) -> list[str]:
            own = build.squeeze(build.op("Gather", z, head, axis=0), 0)
            return [build.op("MatMul", own, build.swap_last(weights[-1]))]

        return self._with_high_head(layer, [low], high)[0]

    def _with_high_head(
        self, layer: int, low: list[str], high: Callable[[list[str], str], list[str]]
    ) -> list[str]:
        """Return values ``[head, ...]`` of one block, with those of the investigated head in FP32.

        Args:
            layer: the block.
            low: low-precision values of all heads.
            high: function from the weights ``[d_model, d_head]`` of Q, K, V and O and the head's index
                ``[1]`` to the same values of that head, ``[...]``.
        """
        build, fixed = self.build, self.described.fixed_head
        if self.described.high == "input":
            here = build.op("Equal", "hi_layer", build.scalar(layer))
            return build.branch(here, lambda: self._put(low, high(*fed_weights(build))), lambda: low)
        if fixed is None or fixed[0] != layer:
            return low
        name = f"blocks.{layer}.attn"
        packed = packed_weights(self.module(name), fixed[1])
        weights = [
            build.tensor(f"{name}.high.{letter}", own)
            for letter, own in zip("QKVO", packed, strict=True)
        ]
        return self._put(low, high(weights, build.integers(fixed[1])))

    def _put(self, low: list[str], high: list[str]) -> list[str]:
        """Return ``low`` with the investigated head's entries replaced by those of ``high``."""
        build, fixed = self.build, self.described.fixed_head
        index = build.reshape("hi_head", 1, 1) if fixed is None else build.constant([[fixed[1]]], int)
        return [
            build.op("ScatterND", all_heads, index, build.unsqueeze(one, 0))
            for all_heads, one in zip(low, high, strict=True)
        ]

    def _patched(self, residual: str, n_inputs: int, reads: int) -> str:
        """Return the patched inputs of the next ``n_inputs`` destinations, ``[dest, row, d_model]``."""
        build, width = self.build, self.cfg.d_model
        mask = build.slice("mask", -2, self._read, self._read + n_inputs)
        mask = build.slice(mask, -1, 0, reads)
        self._read += n_inputs
        deltas = self._deltas if reads == self._seen else build.slice(self._deltas, -2, 0, reads)
        moved = build.op("MatMul", mask, deltas)
        if self.described.seq_len is not None:
            shape = build.shape(self._candidates, self._pos, n_inputs, self._batch, width)
            moved = build.op("Transpose", build.op("Reshape", moved, shape), perm=[2, 0, 3, 1, 4])
        else:
            moved = build.op("Transpose", moved, perm=[1, 0, 2])
        return build.op("Add", build.reshape(moved, n_inputs, -1, width), residual)

    def _add_sources(self, out: str, count: int) -> None:
        """Let later destinations read the next ``count`` sources, with outputs ``out [src, row,
        d_model]``."""
        build = self.build
        corrupt = build.slice("corrupt", 0, self._seen, self._seen + count)
        by_candidate = build.op("Reshape", out, build.shape(count, self._candidates, -1))
        delta = build.op("Sub", build.reshape(corrupt, count, 1, -1), by_candidate)
        if self.described.seq_len is not None:
            shape = build.shape(count, self._candidates, self._batch, self._pos, self.cfg.d_model)
            delta = build.op("Transpose", build.op("Reshape", delta, shape), perm=[1, 3, 0, 2, 4])
            delta = build.op("Reshape", delta, build.shape(self._candidates, self._pos, count, -1))
        else:
            delta = build.op("Transpose", delta, perm=[1, 0, 2])
        deltas = [self._deltas, delta] if self._deltas else [delta]
        self._deltas = build.op("Concat", *deltas, axis=-2)
        self._sources.append(build.op("Reshape", out, self._source_shape))
        self._seen += count
