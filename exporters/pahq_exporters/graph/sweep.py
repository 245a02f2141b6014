"""The sweep graph: single patched edges into one destination, everything else clean.

=============  ===========================  ========================================================
input          shape                        ..
=============  ===========================  ========================================================
``tokens``     ``[batch, pos]``             of int64; with ``start_layer``: ``residual`` and
                                            ``earlier`` as in the dense graph
``src``        ``[edge]``                   of int64; the source of each edge
``corrupt``    ``[edge, batch, pos,         what each edge carries instead of its source's output
               d_model]``
``dest_layer`` ``[]``                       of int64; block of the destination, the number of blocks
                                            for the output
``dest_slot``  ``[]``                       of int64; which input, a number of `description.SLOTS`
``hi_head``    ``[]``                       of int64; the head of that input, 0 where it has none
``w_hi``       ``[4, d_model, d_head]``     FP32 weights of that head, see `pahq_exporters.graph.high`;
                                            not in graphs without low heads
=============  ===========================  ========================================================

Outputs are ``logits [edge, batch, (pos,) vocab]`` and ``sources [src, batch, pos, d_model]``, the
outputs of sources, clean before the destination; with ``dest_slot`` = -1 all are clean.

Up to the destination all edges share one run: the residual stream is ``[1, batch, pos, d_model]`` there,
and has one row per edge after it. An ``If`` in each block finds the destination. The head under test is
computed alone from its patched input, and all other heads once for all edges.
"""

from __future__ import annotations

from pahq_exporters.description import SLOTS
from pahq_exporters.graph.high import fed_weights
from pahq_exporters.graph.parts import Parts


class Sweep(Parts):
    """Builds the sweep graph of one model."""

    def fill(self) -> dict[str, str]:
        """Add all nodes; returns the values of the outputs by name."""
        build, cfg = self.build, self.cfg
        # Nothing reads these two: they only keep files equal to those of earlier versions.
        build.dimension(self.first_input, 1)
        build.dimension("src", 0)
        self.prepare()
        residual = self._start()
        for layer in range(self.described.start_layer, cfg.n_layers):
            with build.scope(f"blocks.{layer}"):
                residual = self._block(layer, residual)
        sources = build.op("Concat", *self._sources, axis=0)
        here = self._is_destination(cfg.n_layers, "output")
        return {"logits": self.logits(self._moved_if(here, residual, self._given)), "sources": sources}

    def _start(self) -> str:
        """Return the residual stream before the first block, ``[1, batch, pos, d_model]``."""
        build, n_earlier = self.build, self.described.n_earlier
        x = build.unsqueeze(self.start(), 0)
        self._given = x  # [edge or 1, batch, pos, d_model], output of each edge's source
        self._sources = [x]
        if n_earlier:
            index = build.op("Min", "src", build.scalar(n_earlier - 1))
            self._given = build.op("Gather", "earlier", index, axis=0)
            self._sources = ["earlier"]
        self._seen = n_earlier or 1
        return x

    def _block(self, layer: int, residual: str) -> str:
        build, cfg = self.build, self.cfg
        before = self._given
        with build.scope("attn"):
            attended = build.op("Add", residual, self._attention(layer, residual))
        if cfg.attn_only:
            return attended
        with build.scope("mlp"):
            read, given = (residual, before) if cfg.parallel_attn_mlp else (attended, self._given)
            x = self._moved_if(self._is_destination(layer, "mlp"), read, given)
            out = self.mlp(layer, x)
            self._add_mlp(out)
            return build.op("Add", attended, out)

    def _is_destination(self, layer: int, slot: str) -> str:
        """Return whether the destination is an input of that kind in that block."""
        build = self.build
        here = build.op("Equal", "dest_layer", build.scalar(layer))
        number = build.scalar(SLOTS.index(slot))
        if slot != "attn":
            return build.op("And", here, build.op("Equal", "dest_slot", number))
        # Q, K, V or all three; a slot of -1 means no destination at all.
        kind = build.op("LessOrEqual", "dest_slot", number)
        kind = build.op("And", kind, build.op("GreaterOrEqual", "dest_slot", build.scalar(0)))
        return build.op("And", here, kind)

    def _moved(self, x: str, given: str) -> str:
        """Return a destination's input: ``x`` with each edge's source replaced, ``[edge, batch, pos,
        d_model]``."""
        return self.build.op("Add", x, self.build.op("Sub", "corrupt", given))

    def _moved_if(self, here: str, x: str, given: str) -> str:
        """Return `_moved` if ``here`` holds, else ``x``."""
        return self.build.branch(here, lambda: [self._moved(x, given)], lambda: [x])[0]

    def _attention(self, layer: int, residual: str) -> str:
        """Return the output of attention, ``[edge or 1, batch, pos, d_model]``."""
        build, cfg, name = self.build, self.cfg, f"blocks.{layer}.attn"
        attn, used = self.module(name), self.precision.format_of("qkv", layer)
        x = self.norm(f"blocks.{layer}.ln1", residual)
        weight = self.rounding.side_by_side(f"{name}.W_QKV", [attn.W_Q, attn.W_K, attn.W_V], used)
        qkv = build.op("MatMul", self.rounding.activation(x, used), weight)
        qkv = build.op("Reshape", qkv, build.shape(0, 0, 0, 3 * cfg.n_heads, cfg.d_head))
        qkv = build.op("Transpose", qkv, perm=[3, 0, 1, 2, 4])  # [3 head, edge, batch, pos, d_head]
        low = build.ops("Split", 3, qkv, axis=0, num_outputs=3)
        q, k, v = (
            build.op("Add", each, self._bias(f"{name}.b_{letter}"))
            for letter, each in zip("QKV", low, strict=True)
        )
        z = self.attend(layer, q, k, v, rank=5)
        used = self.precision.format_of("output", layer)
        output = self.rounding.stacked(f"{name}.W_O", attn.W_O, used)
        given = self._given  # before this block's heads
        self._add_heads(layer, z, output)
        written = build.branch(
            self._is_destination(layer, "attn"),
            lambda: [self._with_tested_head(layer, residual, given, z, output)],
            lambda: [self._written(layer, z, output)],
        )[0]
        return build.op("Add", written, self.parameter(f"{name}.b_O"))

    def _bias(self, name: str) -> str:
        """Return a bias of all heads, ``[head, 1, 1, 1, d_head]``."""
        return self.build.reshape(self.parameter(name), -1, 1, 1, 1, self.cfg.d_head)

    def _written(self, layer: int, z: str, output: str) -> str:
        """Project attended values ``[head, edge, batch, pos, d_head]`` and sum over heads, ``[edge,
        batch, pos, d_model]``."""
        build, cfg = self.build, self.cfg
        z = self.rounding.activation(z, self.precision.format_of("output", layer), 0)
        flat = build.op("Transpose", z, perm=[1, 2, 3, 0, 4])
        flat = build.op("Reshape", flat, build.shape(0, 0, 0, cfg.n_heads * cfg.d_head))
        return build.op("MatMul", flat, output)

    def _with_tested_head(self, layer: int, residual: str, given: str, z: str, output: str) -> str:
        """Return the output of attention if the head under test reads patched inputs.

        The other heads are unchanged: the tested head's output is replaced in the sum, for each edge.
        """
        build, norm = self.build, f"blocks.{layer}.ln1"
        weights, head = self._tested_weights(layer)
        clean = self.norm(norm, residual)
        moved = self.norm(norm, self._moved(residual, given))
        made = []
        for i, letter in enumerate("QKV"):
            is_own = build.op("Equal", "dest_slot", build.scalar(i))
            is_all = build.op("Equal", "dest_slot", build.scalar(SLOTS.index("attn")))
            x = build.op("Where", build.op("Or", is_own, is_all), moved, clean)
            bias = build.op("Gather", f"blocks.{layer}.attn.b_{letter}", head, axis=0)
            made.append(build.op("Add", build.op("MatMul", x, weights[i]), bias))
        own = self.attend(layer, *made, rank=4, head=head)
        own = build.op("MatMul", own, build.swap_last(weights[-1]))
        zeros = build.op("Expand", build.constant(0.0), build.op("Shape", build.slice(z, 0, 0, 1)))
        others = build.op("ScatterND", z, build.reshape(head, 1, 1), zeros)
        return build.op("Add", self._written(layer, others, output), own)

    def _tested_weights(self, layer: int) -> tuple[list[str], str]:
        """Return the weights of the head under test: those fed, or the file's if they are FP32."""
        build, cfg, name = self.build, self.cfg, f"blocks.{layer}.attn"
        if self.described.high == "input":
            return fed_weights(build)
        head = build.reshape("hi_head", 1)
        beside = build.reshape(build.swap_last(f"{name}.W_QKV"), 3, cfg.n_heads, cfg.d_head, cfg.d_model)
        own = build.op("Gather", beside, head, axis=1)
        parts = build.ops("Split", 3, own, axis=0, num_outputs=3)
        weights = [build.swap_last(build.reshape(part, cfg.d_head, cfg.d_model)) for part in parts]
        stacked = build.reshape(f"{name}.W_O", cfg.n_heads, cfg.d_head, cfg.d_model)
        out = build.reshape(build.op("Gather", stacked, head, axis=0), cfg.d_head, cfg.d_model)
        return [*weights, build.swap_last(out)], head

    def _add_heads(self, layer: int, z: str, output: str) -> None:
        """Record the outputs of this block's heads, for edges that have them as source."""
        build, cfg, given = self.build, self.cfg, self._given
        by_head = build.reshape(output, cfg.n_heads, cfg.d_head, cfg.d_model)
        used = self.precision.format_of("output", layer)
        index = build.op("Sub", "src", build.scalar(self._seen))
        inside = build.op("And", build.op("GreaterOrEqual", index, build.scalar(0)),
                          build.op("Less", index, build.scalar(cfg.n_heads)))  # fmt: skip
        any_inside = build.op("ReduceMax", build.op("Cast", inside, to=7), keepdims=0)

        def these() -> list[str]:
            which = build.op("Clip", index, build.scalar(0), build.scalar(cfg.n_heads - 1))
            clean = build.slice(z, 1, 0, 1)  # sources are before the destination: edges share a run
            own = build.squeeze(build.op("Gather", clean, which, axis=0), 1)
            own = self.rounding.activation(own, used)
            weights = build.unsqueeze(build.op("Gather", by_head, which, axis=0), 1)
            chosen = build.reshape(inside, -1, 1, 1, 1)
            return [build.op("Where", chosen, build.op("MatMul", own, weights), given)]

        self._given = build.branch(build.op("Cast", any_inside, to=9), these, lambda: [given])[0]
        clean = build.squeeze(build.slice(z, 1, 0, 1), 1)
        weights = build.unsqueeze(by_head, 1)
        rounded = self.rounding.activation(clean, used, 0)
        self._sources.append(build.op("MatMul", rounded, weights))
        self._seen += cfg.n_heads

    def _add_mlp(self, out: str) -> None:
        """Record the output of an MLP, for edges that have it as source."""
        build = self.build
        clean = build.slice(out, 0, 0, 1)
        is_source = build.op("Equal", "src", build.scalar(self._seen))
        chosen = build.reshape(is_source, -1, 1, 1, 1)
        self._given = build.op("Where", chosen, clean, self._given)
        self._sources.append(clean)
        self._seen += 1
