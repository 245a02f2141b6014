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

from pahq_exporters.graph.builder import Builder
from pahq_exporters.graph.high import HighHead, K, O, Q, V
from pahq_exporters.graph.parts import Parts
from pahq_plugin.host import PatchableModel


class Dense:
    """Builds the dense graph of one model.

    Args:
        build: the graph.
        model: the exported model.
        parts: the model's parts in this graph.
        high: how the investigated head is chosen.
        start_layer: the first block.
        n_earlier: number of sources before it.
        positions: positions of the logits, see `pahq_exporters.description`.
    """

    def __init__(
        self,
        build: Builder,
        model: PatchableModel,
        parts: Parts,
        high: HighHead,
        start_layer: int,
        n_earlier: int,
        positions: str,
    ) -> None:
        self.build, self.model, self.parts, self.high = build, model, parts, high
        self.start_layer, self.n_earlier, self.positions = start_layer, n_earlier, positions
        self.cfg = model.cfg
        self.slots = 3 if model.separate_qkv else 1
        self.by_position = model.seq_len is not None
        # [candidate, src, batch * pos * d_model], by position [candidate, pos, src, batch * d_model]
        self._deltas: str | None = None
        self._sources: list[str] = []  # [some, candidate * batch, pos, d_model] each
        self._seen = 0
        self._read = 0

    def fill(self) -> dict[str, str]:
        """Add all nodes; returns the values of the outputs by name."""
        build, cfg = self.build, self.cfg
        tokens = "tokens" if self.start_layer == 0 else "residual"
        self._batch, self._length = build.dimension(tokens, 0), build.dimension(tokens, 1)
        self._candidates = build.dimension("mask", 0)
        self._rows = build.op("Mul", self._candidates, self._batch)
        self._split_shape = build.shape(cfg.n_heads, -1, self._length, cfg.d_head)
        self._source_shape = build.shape(-1, self._rows, self._length, cfg.d_model)
        self.parts.prepare()
        residual = self._start()
        for layer in range(self.start_layer, cfg.n_layers):
            with build.scope(f"blocks.{layer}"):
                residual = self._block(layer, residual)
        return {"logits": self._end(residual), "sources": build.op("Concat", *self._sources, axis=0)}

    def _start(self) -> str:
        build, cfg = self.build, self.cfg
        x = self.parts.embed("tokens") if self.start_layer == 0 else "residual"
        many = build.shape(self._candidates, 1, 1, 1)
        x = build.reshape(build.op("Expand", build.op("Unsqueeze", x, build.integers(0)), many), -1,
                          cfg.d_model)  # fmt: skip
        if self.start_layer == 0:
            self._add_sources(build.op("Unsqueeze", x, build.integers(0)), 1)
        else:
            earlier = build.op("Unsqueeze", "earlier", build.integers(1))
            earlier = build.op("Expand", earlier, build.shape(1, self._candidates, 1, 1, 1))
            self._add_sources(build.reshape(earlier, self.n_earlier, -1, cfg.d_model), self.n_earlier)
        return x

    def _block(self, layer: int, residual: str) -> str:
        """Map the residual stream before a block to that after it, ``[row, d_model]``."""
        build, block, cfg = self.build, self.model.blocks[layer], self.cfg
        before = self._seen
        with build.scope("attn"):
            result = self._heads(layer, residual)
            self._add_sources(result, cfg.n_heads)
            total = build.op("ReduceSum", result, build.integers(0), keepdims=0)
            bias = build.tensor(f"blocks.{layer}.attn.b_O", block.attn.b_O.float())
            attended = build.op("Add", build.op("Add", residual, total), bias)
        if cfg.attn_only:
            return attended
        with build.scope("mlp"):
            x = residual if cfg.parallel_attn_mlp else attended
            x = self._patched(x, 1, before if cfg.parallel_attn_mlp else self._seen)
            x = build.op("Squeeze", x, build.integers(0))
            out = self.parts.mlp(layer, self.parts.norm(block.ln2, f"blocks.{layer}.ln2", x))
            self._add_sources(build.op("Unsqueeze", out, build.integers(0)), 1)
            return build.op("Add", attended, out)

    def _heads(self, layer: int, residual: str) -> str:
        """Return the output of each head, ``[head, row, d_model]``."""
        build, attn, cfg = self.build, self.model.blocks[layer].attn, self.cfg
        used = self.parts.precision.format_of("qkv", layer)
        x = self._patched(residual, self.slots * cfg.n_heads, self._seen)
        x = self.parts.norm(self.model.blocks[layer].ln1, f"blocks.{layer}.ln1", x)
        inputs = build.ops("Split", 3, x, axis=0, num_outputs=3) if self.slots == 3 else [x] * 3
        low_inputs = [self.parts.rounding.activation(each, used, 0) for each in inputs]
        low = []
        for letter, each in zip("QKV", low_inputs, strict=True):
            name = f"blocks.{layer}.attn.W_{letter}"
            weight = self.parts.rounding.weight(name, getattr(attn, f"W_{letter}"), used)
            bias = build.tensor(f"blocks.{layer}.attn.b_{letter}", getattr(attn, f"b_{letter}").float())
            product = build.op("MatMul", each, weight)
            low.append(build.op("Add", product, build.op("Unsqueeze", bias, build.integers(1))))
        q, k, v = self.high.replace(
            layer, low, lambda weights, head: self._high_qkv(layer, inputs, weights, head)
        )
        q, k, v = (build.op("Reshape", value, self._split_shape) for value in (q, k, v))
        z = self.parts.attend(layer, q, k, v, rank=4)
        z = build.reshape(z, cfg.n_heads, -1, cfg.d_head)
        return self._written(layer, z)

    def _high_qkv(self, layer: int, inputs: list[str], weights: list[str], head: str) -> list[str]:
        """Return query, key and value of the investigated head, ``[row, d_head]`` each."""
        build, made = self.build, []
        for letter, x, which in zip("QKV", inputs, (Q, K, V), strict=True):
            own = build.op("Squeeze", build.op("Gather", x, head, axis=0), build.integers(0))
            bias = build.op("Gather", f"blocks.{layer}.attn.b_{letter}", head, axis=0)
            made.append(build.op("Add", build.op("MatMul", own, weights[which]), bias))
        return made

    def _written(self, layer: int, z: str) -> str:
        """Project attended values ``[head, row, d_head]`` to head outputs ``[head, row, d_model]``."""
        build, attn = self.build, self.model.blocks[layer].attn
        used = self.parts.precision.format_of("output", layer)
        weight = self.parts.rounding.weight(f"blocks.{layer}.attn.W_O", attn.W_O, used)
        low = build.op("MatMul", self.parts.rounding.activation(z, used, 0), weight)

        def high(weights: list[str], head: str) -> list[str]:
            own = build.op("Squeeze", build.op("Gather", z, head, axis=0), build.integers(0))
            return [build.op("MatMul", own, build.op("Transpose", weights[O], perm=[1, 0]))]

        return self.high.replace(layer, [low], high)[0]

    def _patched(self, residual: str, n_inputs: int, reads: int) -> str:
        """Return the patched inputs of the next ``n_inputs`` destinations, ``[dest, row, d_model]``."""
        build = self.build
        assert self._deltas is not None
        mask = build.slice("mask", -2, self._read, self._read + n_inputs)
        mask = build.slice(mask, -1, 0, reads)
        self._read += n_inputs
        deltas = self._deltas if reads == self._seen else build.slice(self._deltas, -2, 0, reads)
        moved = build.op("MatMul", mask, deltas)
        if self.by_position:
            shape = build.shape(self._candidates, self._length, n_inputs, self._batch, self.cfg.d_model)
            moved = build.op("Transpose", build.op("Reshape", moved, shape), perm=[2, 0, 3, 1, 4])
        else:
            moved = build.op("Transpose", moved, perm=[1, 0, 2])
        return build.op("Add", build.reshape(moved, n_inputs, -1, self.cfg.d_model), residual)

    def _add_sources(self, out: str, count: int) -> None:
        """Let later destinations read the next ``count`` sources, with outputs ``out [src, row,
        d_model]``."""
        build = self.build
        corrupt = build.slice("corrupt", 0, self._seen, self._seen + count)
        by_candidate = build.op("Reshape", out, build.shape(count, self._candidates, -1))
        delta = build.op("Sub", build.reshape(corrupt, count, 1, -1), by_candidate)
        if self.by_position:
            shape = build.shape(count, self._candidates, self._batch, self._length, self.cfg.d_model)
            delta = build.op("Transpose", build.op("Reshape", delta, shape), perm=[1, 3, 0, 2, 4])
            delta = build.op("Reshape", delta, build.shape(self._candidates, self._length, count, -1))
        else:
            delta = build.op("Transpose", delta, perm=[1, 0, 2])
        deltas = [delta] if self._deltas is None else [self._deltas, delta]
        self._deltas = build.op("Concat", *deltas, axis=-2)
        self._sources.append(build.op("Reshape", out, self._source_shape))
        self._seen += count

    def _end(self, residual: str) -> str:
        """Return logits ``[candidate, batch, (pos,) vocab]``."""
        build = self.build
        x = self._patched(residual, 1, self._seen)
        shape = build.shape(self._candidates, self._batch, self._length, self.cfg.d_model)
        x = build.op("Reshape", x, shape)
        if self.positions == "last":
            x = build.op("Gather", x, build.scalar(-1), axis=2)
        elif self.positions == "not_first":
            x = build.slice(x, 2, 1, 2**62)
        return self.parts.unembed(self.parts.final_norm(x))
