"""The present state of one batch: the outputs of sources and the inputs of destinations.

Only source outputs are stored (`pahq_plugin.engines.incremental.source_outputs`). The input of a
destination is computed from them on request, by whichever sum has fewer terms:

- all sources ablated, plus (now - ablated) of the sources of kept edges;
- all sources as they are now, minus (now - ablated) of the sources of removed edges.

Inputs and the queries, keys and values computed from them are memoised. Tensors are unit-major:
``[head, (candidate,) batch, pos, d]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pahq_plugin.engines.incremental.differences import Differences
from pahq_plugin.engines.incremental.kept_graph import KeptGraph, Place, Stage
from pahq_plugin.engines.incremental.memo import Held, Memo, Sized, Versioned
from pahq_plugin.engines.incremental.positions import Ints, Positions
from pahq_plugin.engines.incremental.products import OwnProducts, Products, RowFunction
from pahq_plugin.engines.incremental.source_outputs import Sources
from pahq_plugin.host import PatchableModel, PromptPairBatch
from pahq_plugin.models.blocks import AttentionMath, normalise


class BatchState:
    """Sources of one batch, now and ablated, and memoised inputs.

    Args:
        model: the host model, whose weights are read in place.
        batch: its prompts.
        padding: 1 for tokens, 0 for padding, ``[batch, offset_pos]``, or ``None``.
        graph: the kept edges, shared by all batches.
        now: source outputs of the present state; changed by `Differences.add`.
        ablated: source outputs that removed edges carry.
        memo_bytes: budget for memoised inputs; in addition, residual streams get a quarter of it, and
            differences and hidden layers of screened MLPs half (see `budget.MEMO_PARTS`).
        own: products in the model's own precision.
        first_changes: per prompt the position before which nothing ever differs, ``[prompt]``.
    """

    def __init__(
        self,
        model: PatchableModel,
        batch: PromptPairBatch,
        padding: Tensor | None,
        graph: KeptGraph,
        now: Sources,
        ablated: Sources,
        memo_bytes: int,
        first_changes: Ints,
        own: OwnProducts,
    ) -> None:
        self.model = model
        self.batch = batch
        self.graph = graph
        self.now = now
        self.ablated = ablated
        self.own = own
        self.attention = [
            AttentionMath(model, layer, now.embedding, padding) for layer in range(model.cfg.n_layers)
        ]
        self._held: Memo[Held] = Memo(memo_bytes)
        self._bases: Memo[Versioned] = Memo(memo_bytes // 4)
        self._derived: Memo[Sized] = Memo(memo_bytes // 2)
        self.differences = Differences(graph, own, now, ablated, model.cfg.dtype, self._derived)
        self._input_versions: defaultdict[Place, int] = defaultdict(int)
        self._active = np.arange(graph.shape.length) >= first_changes[:, None]
        self._tokens: dict[int, Tensor | None] = {}

    def restart(self, now: Sources) -> None:
        """Make ``now`` the present source outputs, and forget everything computed from others."""
        self.now = now
        self.differences.restart(now)
        self._held.clear()
        self._bases.clear()
        self._derived.clear()

    def forget_screened(self) -> None:
        """Forget what was computed in low precision, since the formats have changed."""
        self._derived.clear()

    def next_round(self) -> None:
        """Tell the memos that a pass begins."""
        self._held.next_round()
        self._bases.next_round()
        self._derived.next_round()

    # Sources -------------------------------------------------------------------------------------

    def changing_tokens(self, positions: Positions) -> Tensor | None:
        """Return which tokens ``[batch, pos]`` at ``positions`` can differ from the clean run, as
        indices into the flattened axes; ``None`` for all."""
        key = id(positions)
        if key not in self._tokens:
            active = self._active[:, positions.array].reshape(-1)
            where = torch.from_numpy(np.flatnonzero(active)).to(positions.index.device)
            self._tokens[key] = None if active.all() else where
        return self._tokens[key]

    # Inputs --------------------------------------------------------------------------------------

    def inputs(self, at: int, slot: int, heads: Sequence[int], positions: Positions) -> list[Tensor]:
        """Return the inputs of some destinations at ``positions``, ``[batch, pos, d_model]`` each."""
        found = []
        for head in heads:
            held = self._lookup("x", at, slot, head, positions)
            if held is None:
                held = Held(positions, {"x": self._input(at, slot, head, positions)})
                self._held.put(("x", at, slot, head), held)
            found.append(held.at("x", positions))
        return found

    def projections(
        self, at: int, slot: int, heads: Sequence[int], positions: Positions
    ) -> dict[str, Tensor]:
        """Return the projections of the inputs of heads at ``positions``: by letter, before rotation,
        ``[head, batch, pos, d_head]``.

        They are much smaller than the inputs, which are not memoised for them.
        """
        found = {head: self._lookup("y", at, slot, head, positions) for head in heads}
        missing = [head for head, held in found.items() if held is None]
        if missing:
            x = torch.stack([self._passing_input(at, slot, head, positions) for head in missing])
            ys = self.projected(self.graph.stages[at], slot, missing, x[:, None], self.own)
            for i, head in enumerate(missing):
                held = Held(positions, {letter: y[i, 0].clone() for letter, y in ys.items()})
                self._held.put(("y", at, slot, head), held)
                found[head] = held
        every = [held for held in found.values() if held is not None]
        return {
            letter: torch.stack([held.at(letter, positions) for held in every])
            for letter in letters(self.graph.stages[at], slot)
        }

    def _passing_input(self, at: int, slot: int, head: int, positions: Positions) -> Tensor:
        """Return the input of one destination without memoising it."""
        held = self._lookup("x", at, slot, head, positions)
        return self._input(at, slot, head, positions) if held is None else held.at("x", positions)

    def _lookup(self, what: str, at: int, slot: int, head: int, positions: Positions) -> Held | None:
        """Return what is memoised, or ``None`` unless it holds all these positions."""
        held = self._held.get((what, at, slot, head))
        return held if held is not None and positions.inside(held.positions) else None

    def update(
        self,
        at: int,
        slot: int,
        heads: Sequence[int],
        positions: Positions,
        terms: Iterable[tuple[int, Tensor, Tensor | None]],
    ) -> None:
        """Add terms to the inputs of destinations of a stage.

        Args:
            at: the stage.
            slot: which input of its heads.
            heads: which heads.
            positions: positions at which the inputs change.
            terms: index into ``heads``; term ``[batch, pos, d_model]``; indices of its positions in
                ``positions``, ``None`` for all.
        """
        inputs = [self._lookup("x", at, slot, head, positions) for head in heads]
        ys = [self._lookup("y", at, slot, head, positions) for head in heads]
        for i, head in enumerate(heads):
            if inputs[i] is None and ys[i] is not None:
                inputs[i] = Held(positions, {"x": self._input(at, slot, head, positions)})
        for i, term, where in terms:
            held = inputs[i]
            if held is not None:
                held.add(positions, where, "x", term)
        for i, head in enumerate(heads):
            self._input_versions[at, slot, head] += 1
            for what, held in (("x", inputs[i]), ("y", ys[i])):
                if held is None:
                    self._held.drop((what, at, slot, head))
        some = [i for i, held in enumerate(ys) if held is not None]
        if some:
            x = torch.stack([_known(inputs[i]).at("x", positions) for i in some])
            chosen = [heads[i] for i in some]
            new = self.projected(self.graph.stages[at], slot, chosen, x[:, None], self.own)
            for j, i in enumerate(some):
                _known(ys[i]).write(positions, {letter: y[j, 0] for letter, y in new.items()})

    def forget(self, at: int, slot: int, head: int) -> None:
        """Forget the input of a destination, which has changed."""
        self._input_versions[at, slot, head] += 1
        for what in "xy":
            self._held.drop((what, at, slot, head))

    def _input(self, at: int, slot: int, head: int, positions: Positions) -> Tensor:
        """Compute the input of one destination, ``[batch, pos, d_model]``."""
        kept, where = self.graph.kept[at][slot, head], positions.index  # kept: [pos or 1, source]
        if kept.shape[0] > 1:
            kept = kept[positions.array]
        few_kept = 2 * kept.sum() <= kept.size
        chosen = kept if few_kept else ~kept
        base = self.ablated_base(at) if few_kept else self.current_base(at)
        x = base.index_select(1, where)
        sources = np.flatnonzero(chosen.any(axis=0))
        if len(sources) == 0:
            return x
        weights = None
        if chosen.shape[0] > 1:
            weights = torch.from_numpy(chosen[:, sources].T.copy()).to(x)
        total = self.differences.summed([int(s) for s in sources], where, weights)
        return x + total if few_kept else x - total

    def projected(
        self,
        stage: Stage,
        slot: int,
        heads: Sequence[int],
        x: Tensor,
        products: Products,
        now: tuple[Tensor, Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the queries, keys and/or values of heads from ``x``, before rotation, with bias.

        Args:
            stage: a stage of heads.
            slot: 0, 1, 2 for Q, K, V; with one joint input all three are computed.
            heads: which heads, ``[head]``.
            x: ``[head, candidate, batch, pos, d_model]``.
            products: weight products to use.
            now: present inputs of the heads, ``[head, batch, pos, d_model]``, and their projections, by
                letter ``[head, batch, pos, d_head]``; needed by products other than the model's own.

        Returns:
            By letter, ``[head, candidate, batch, pos, d_head]``.
        """
        math = self.attention[stage.layer]
        flat = normalise(math.norm, x).flatten(2, 3)  # [head, candidate, batch * pos, d_model]
        x_now = flat if now is None else normalise(math.norm, now[0]).flatten(1, 2)[:, None]
        out = {}
        for letter in letters(stage, slot):
            bias = math.bias_of(letter)
            bias = (bias if len(heads) == len(bias) else bias[list(heads)])[:, None, None]
            y_now = flat if now is None else now[1][letter].flatten(1, 2)[:, None] - bias
            name = f"W_{letter.upper()}"
            y = products.project(stage.layer, name, heads, flat, x_now, y_now) + bias
            out[letter] = y.unflatten(2, x.shape[2:4])
        return out

    def mlp(
        self,
        at: int,
        positions: Positions,
        x_now: Callable[[], Tensor],
        y_now: Tensor,
        products: Products,
    ) -> RowFunction:
        """Return an MLP, norm included, as a function of inputs ``[candidate, n, d_model]``.

        Args:
            at: its stage.
            positions: positions at which it is computed.
            x_now: returns the present inputs at the changing tokens there, ``[n, d_model]``; called if
                the products need them.
            y_now: the present outputs, ``[n, d_model]``.
            products: weight products to use.
        """
        layer = self.graph.stages[at].layer
        norm = self.own.blocks[layer].ln2
        if products is self.own:
            return lambda x: self.own.blocks[layer].mlp(normalise(norm, x)).sub_(y_now)
        present = normalise(norm, x_now()[None])

        def hidden() -> dict[str, Tensor]:
            return self._hidden_of(at, positions, lambda: products.hidden(layer, present))

        mlp = products.mlp(layer, present, y_now[None], hidden)
        return lambda x: mlp(normalise(norm, x))

    def _hidden_of(
        self, at: int, positions: Positions, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the present hidden layer, memoised while the MLP's input stays the same.

        It only decides how strongly a change is passed on, so 16 bits suffice.
        """
        key, version = ("hidden", at, id(positions)), self._input_versions[at, 0, 0]
        found = self._derived.get(key)
        if not isinstance(found, Versioned) or found.version != version:
            entries = {name: entry.bfloat16() for name, entry in make().items()}
            found = Versioned(entries, version)
            self._derived.put(key, found)
        return {name: entry.to(self.model.cfg.dtype) for name, entry in found.entries.items()}

    # Residual streams ----------------------------------------------------------------------------

    def ablated_base(self, at: int) -> Tensor:
        """Return the input of a stage with every source ablated, ``[batch, pos, d_model]``."""
        return self._base("ablated", at, self.ablated, version=0)

    def current_base(self, at: int) -> Tensor:
        """Return the input of a stage with every edge kept and sources as they are now."""
        version = self.differences.version(self.graph.stages[at].n_sources)
        return self._base("now", at, self.now, version)

    def _base(self, which: str, at: int, sources: Sources, version: int) -> Tensor:
        base = self._bases.get((which, at))
        if base is None or base.version != version:
            base = Versioned({"x": self._residual(sources, self.graph.stages[at])}, version)
            self._bases.put((which, at), base)
        return base.entries["x"]

    def _residual(self, sources: Sources, stage: Stage) -> Tensor:
        """Sum the outputs of the sources before ``stage`` to a residual stream."""
        dtype = self.model.cfg.dtype
        total = sources.embedding.to(dtype).clone()
        for earlier in self.graph.stages:
            if not 0 <= earlier.first_source < stage.n_sources:
                continue
            if earlier.kind == "mlp":
                total += sources.mlp[earlier.layer].to(dtype)
                continue
            attn = self.own.blocks[earlier.layer].attn
            z = sources.z[earlier.layer].to(dtype).permute(1, 2, 0, 3).flatten(2)
            total += z @ attn.W_O.flatten(0, 1) + attn.b_O
        return total

    @property
    def nbytes(self) -> int:
        """Bytes of the caches: sources now and ablated, and the memos."""
        memos = self._held.nbytes + self._bases.nbytes + self._derived.nbytes
        return self.now.nbytes + self.ablated.nbytes + memos


def _known(held: Held | None) -> Held:
    assert held is not None
    return held


def letters(stage: Stage, slot: int) -> str:
    """Return which of q, k and v are computed from a slot: one, or all three from a joint input."""
    return "qkv"[slot] if stage.slots == 3 else "qkv"
