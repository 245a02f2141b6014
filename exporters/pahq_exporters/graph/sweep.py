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
from pahq_exporters.graph.builder import Builder
from pahq_exporters.graph.high import HighHead, K, O, Q, V
from pahq_exporters.graph.parts import Parts
from pahq_exporters.graph.weights import store_side_by_side, store_stacked
from pahq_plugin.host import PatchableModel


class Sweep:
    """Builds the sweep graph of one model; arguments as in `dense.Dense`."""

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
        self._seen = 0
        self._given = ""  # [edge or 1, batch, pos, d_model], output of each edge's source
        self._sources: list[str] = []

    def fill(self) -> dict[str, str]:
        """Add all nodes; returns the values of the outputs by name."""
        build, cfg = self.build, self.cfg
        tokens = "tokens" if self.start_layer == 0 else "residual"
        self._length = build.dimension(tokens, 1)
        self._edges = build.dimension("src", 0)
        self.parts.prepare()
        residual = self._start()
        for layer in range(self.start_layer, cfg.n_layers):
            with build.scope(f"blocks.{layer}"):
                residual = self._block(layer, residual)
        sources = build.op("Concat", *self._sources, axis=0)
        return {"logits": self._end(residual), "sources": sources}

    def _start(self) -> str:
        build = self.build
        if self.start_layer == 0:
            x = build.op("Unsqueeze", self.parts.embed("tokens"), build.integers(0))
            self._given, earlier = x, x
        else:
            x = build.op("Unsqueeze", "residual", build.integers(0))
            earlier = "earlier"
            index = build.op("Min", "src", build.scalar(self.n_earlier - 1))
            self._given = build.op("Gather", "earlier", index, axis=0)
        self._sources.append(earlier)
        self._seen = self.n_earlier if self.start_layer else 1
        return x

    def _block(self, layer: int, residual: str) -> str:
        build, block, cfg = self.build, self.model.blocks[layer], self.cfg
        before = self._given
        with build.scope("attn"):
            attended = build.op("Add", residual, self._attention(layer, residual))
        if cfg.attn_only:
            return attended
        with build.scope("mlp"):
            x = residual if cfg.parallel_attn_mlp else attended
            given = before if cfg.parallel_attn_mlp else self._given
            here = self._is_destination(layer, "mlp")
            x = build.branch(here, lambda: [self._moved(x, given)], lambda: [x])[0]
            out = self.parts.mlp(layer, self.parts.norm(block.ln2, f"blocks.{layer}.ln2", x))
            self._add_mlp(out)
            return build.op("Add", attended, out)

    def _is_destination(self, layer: int, slot: str) -> str:
        """Return whether the destination is an input of that kind in that block."""
        build = self.build
        here = build.op("Equal", "dest_layer", build.scalar(layer))
        number = build.scalar(SLOTS.index(slot))
        kind = (
            build.op("LessOrEqual", "dest_slot", number)
            if slot == "attn"
            else build.op("Equal", "dest_slot", number)
        )
        if slot == "attn":  # Q, K, V or all three; a slot of -1 means no destination at all
            kind = build.op("And", kind, build.op("GreaterOrEqual", "dest_slot", build.scalar(0)))
        return build.op("And", here, kind)

    def _moved(self, x: str, given: str) -> str:
        """Return a destination's input: ``x`` with each edge's source replaced, ``[edge, batch, pos,
        d_model]``."""
        build = self.build
        return build.op("Add", x, build.op("Sub", "corrupt", given))

    def _attention(self, layer: int, residual: str) -> str:
        """Return the output of attention, ``[edge or 1, batch, pos, d_model]``."""
        build, block, cfg = self.build, self.model.blocks[layer], self.cfg
        attn, name = block.attn, f"blocks.{layer}.attn"
        used = self.parts.precision.format_of("qkv", layer)
        held = self.parts.precision.weight_format(used)
        x = self.parts.norm(block.ln1, f"blocks.{layer}.ln1", residual)
        weight = store_side_by_side(
            build, f"{name}.W_QKV", [attn.W_Q, attn.W_K, attn.W_V], held, self.parts.precision.scale
        )
        qkv = build.op("MatMul", self.parts.rounding.activation(x, used, None), weight)
        qkv = build.op("Reshape", qkv, build.shape(0, 0, 0, 3 * cfg.n_heads, cfg.d_head))
        qkv = build.op("Transpose", qkv, perm=[3, 0, 1, 2, 4])  # [3 head, edge, batch, pos, d_head]
        low = build.ops("Split", 3, qkv, axis=0, num_outputs=3)
        q, k, v = (
            build.op("Add", each, self._bias(layer, letter))
            for letter, each in zip("QKV", low, strict=True)
        )
        z = self.parts.attend(layer, q, k, v, rank=5)
        output = store_stacked(
            build,
            f"{name}.W_O",
            attn.W_O,
            self.parts.precision.weight_format(self.parts.precision.format_of("output", layer)),
            self.parts.precision.scale,
        )
        given = self._given  # before this block's heads
        self._add_heads(layer, z, output)
        written = build.branch(
            self._is_destination(layer, "attn"),
            lambda: [self._with_tested_head(layer, residual, given, z, output)],
            lambda: [self._written(layer, z, output)],
        )[0]
        return build.op("Add", written, build.tensor(f"{name}.b_O", attn.b_O.float()))

    def _bias(self, layer: int, letter: str) -> str:
        """Return a bias of all heads, ``[head, 1, 1, 1, d_head]``."""
        attn = self.model.blocks[layer].attn
        bias = getattr(attn, f"b_{letter}").float()
        value = self.build.tensor(f"blocks.{layer}.attn.b_{letter}", bias)
        return self.build.reshape(value, -1, 1, 1, 1, self.cfg.d_head)

    def _written(self, layer: int, z: str, output: str) -> str:
        """Project attended values ``[head, edge, batch, pos, d_head]`` and sum over heads, ``[edge,
        batch, pos, d_model]``."""
        build, cfg = self.build, self.cfg
        z = self.parts.rounding.activation(z, self.parts.precision.format_of("output", layer), 0)
        flat = build.op("Transpose", z, perm=[1, 2, 3, 0, 4])
        flat = build.op("Reshape", flat, build.shape(0, 0, 0, cfg.n_heads * cfg.d_head))
        return build.op("MatMul", flat, output)

    def _with_tested_head(self, layer: int, residual: str, given: str, z: str, output: str) -> str:
        """Return the output of attention if the head under test reads patched inputs.

        The other heads are unchanged: the tested head's output is replaced in the sum, for each edge.
        """
        build, _cfg = self.build, self.cfg
        weights, head = self._tested_weights(layer)
        norm, name = self.model.blocks[layer].ln1, f"blocks.{layer}.ln1"
        clean = self.parts.norm(norm, name, residual)
        moved = self.parts.norm(norm, name, self._moved(residual, given))
        made = []
        for i, letter in enumerate("QKV"):
            is_own = build.op("Equal", "dest_slot", build.scalar(i))
            is_all = build.op("Equal", "dest_slot", build.scalar(SLOTS.index("attn")))
            x = build.op("Where", build.op("Or", is_own, is_all), moved, clean)
            bias = build.op("Gather", f"blocks.{layer}.attn.b_{letter}", head, axis=0)
            made.append(build.op("Add", build.op("MatMul", x, weights[(Q, K, V)[i]]), bias))
        own = self.parts.attend(layer, *made, rank=4, head=head)
        own = build.op("MatMul", own, build.op("Transpose", weights[O], perm=[1, 0]))
        zeros = build.op("Expand", build.constant(0.0), build.op("Shape", build.slice(z, 0, 0, 1)))
        index = build.op("Reshape", head, build.integers(1, 1))
        others = build.op("ScatterND", z, index, zeros)
        return build.op("Add", self._written(layer, others, output), own)

    def _tested_weights(self, layer: int) -> tuple[list[str], str]:
        """Return the weights of the head under test: those fed, or the file's if they are FP32."""
        build, cfg = self.build, self.cfg
        if self.high.kind == "input":
            return self.high.fed_weights()
        head = build.reshape("hi_head", 1)
        name = f"blocks.{layer}.attn"
        beside = build.op("Transpose", f"{name}.W_QKV", perm=[1, 0])
        beside = build.reshape(beside, 3, cfg.n_heads, cfg.d_head, cfg.d_model)
        own = build.op("Gather", beside, head, axis=1)
        parts = build.ops("Split", 3, own, axis=0, num_outputs=3)
        weights = [
            build.op("Transpose", build.reshape(part, cfg.d_head, cfg.d_model), perm=[1, 0])
            for part in parts
        ]
        stacked = build.reshape(f"{name}.W_O", cfg.n_heads, cfg.d_head, cfg.d_model)
        out = build.reshape(build.op("Gather", stacked, head, axis=0), cfg.d_head, cfg.d_model)
        return [*weights, build.op("Transpose", out, perm=[1, 0])], head

    def _add_heads(self, layer: int, z: str, output: str) -> None:
        """Record the outputs of this block's heads, for edges that have them as source."""
        build, cfg = self.build, self.cfg
        first, given = self._seen, self._given
        by_head = build.reshape(output, cfg.n_heads, cfg.d_head, cfg.d_model)
        used = self.parts.precision.format_of("output", layer)
        index = build.op("Sub", "src", build.scalar(first))
        inside = build.op("And", build.op("GreaterOrEqual", index, build.scalar(0)),
                          build.op("Less", index, build.scalar(cfg.n_heads)))  # fmt: skip
        is_any = build.op(
            "Cast", build.op("ReduceMax", build.op("Cast", inside, to=7), keepdims=0), to=9
        )

        def these() -> list[str]:
            which = build.op("Clip", index, build.scalar(0), build.scalar(cfg.n_heads - 1))
            clean = build.slice(
                z, 1, 0, 1
            )  # sources are before the destination, where edges share a run
            own = build.op("Squeeze", build.op("Gather", clean, which, axis=0), build.integers(1))
            own = self.parts.rounding.activation(own, used, None)
            weights = build.op(
                "Unsqueeze", build.op("Gather", by_head, which, axis=0), build.integers(1)
            )
            chosen = build.op("Reshape", inside, build.integers(-1, 1, 1, 1))
            return [build.op("Where", chosen, build.op("MatMul", own, weights), given)]

        self._given = build.branch(is_any, these, lambda: [given])[0]
        clean = build.op("Squeeze", build.slice(z, 1, 0, 1), build.integers(1))
        weights = build.op("Unsqueeze", by_head, build.integers(1))
        rounded = self.parts.rounding.activation(clean, used, 0)
        self._sources.append(build.op("MatMul", rounded, weights))
        self._seen += cfg.n_heads

    def _add_mlp(self, out: str) -> None:
        """Record the output of an MLP, for edges that have it as source."""
        build = self.build
        clean = build.slice(out, 0, 0, 1)
        is_source = build.op("Equal", "src", build.scalar(self._seen))
        chosen = build.op("Reshape", is_source, build.integers(-1, 1, 1, 1))
        self._given = build.op("Where", chosen, clean, self._given)
        self._sources.append(clean)
        self._seen += 1

    def _end(self, residual: str) -> str:
        """Return logits ``[edge, batch, (pos,) vocab]``."""
        build = self.build
        here = self._is_destination(self.cfg.n_layers, "output")
        x = build.branch(here, lambda: [self._moved(residual, self._given)], lambda: [residual])[0]
        if self.positions == "last":
            x = build.op("Gather", x, build.scalar(-1), axis=2)
        elif self.positions == "not_first":
            x = build.slice(x, 2, 1, 2**62)
        return self.parts.unembed(self.parts.final_norm(x))
