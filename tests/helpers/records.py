"""Records of results, as ``result.json`` holds them, made up from a few edges."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NODES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: "->" not in name and not name.endswith("-") and not name.startswith(">")
)
"""Names of nodes as bad as they come; none can be mistaken for an arrow."""

EFFECTS = st.one_of(st.just(0.0), st.floats(-1e3, 1e3), st.floats(-1e-300, 1e300))


def decision(edge: str, effect: float, kept: bool = True, **others: Any) -> dict[str, Any]:
    """One entry of a record."""
    return {"edge": edge, "seq_idx": None, "effect": effect, "kept": kept, "exact": True} | others


def record_of(
    decisions: Iterable[dict[str, Any]], *, name: str = "tiny", digest: str = "d", scored: bool = False
) -> dict[str, Any]:
    """A record of those decisions, of a search or of a method that scores edges."""
    entries = list(decisions)
    settings: dict[str, Any] = {"ablation": "resample", "seed": 0, "scored": scored}
    if scored:
        settings |= {"method": "eap"}
    else:
        settings |= {"method": "acdc", "threshold": 0.01, "metric": "kl_div", "precision": None}
    model = {"name": name, "digest": digest, "edges": len(entries)}
    return {"schema": "pahq-discovery/1", "model": model, "settings": settings, "decisions": entries}


def transformer_edges(n_layers: int, n_heads: int) -> list[str]:
    """Names of all edges of a transformer with separate Q, K and V."""
    sources, edges = ["Resid Start"], []
    for layer in range(n_layers):
        heads = [f"A{layer}.{head}" for head in range(n_heads)]
        edges += [f"{s}->{head}.{slot}" for head in heads for slot in "QKV" for s in sources]
        edges += [f"{s}->MLP {layer}" for s in [*sources, *heads]]
        sources += [*heads, f"MLP {layer}"]
    return edges + [f"{source}->Resid End" for source in sources]


def random_record(
    kept: int, *, n_layers: int = 4, n_heads: int = 8, seed: int = 0, signed: bool = False
) -> dict[str, Any]:
    """A record with that many kept edges, their effects spread over several powers of ten."""
    rng = random.Random(seed)
    effects = {edge: rng.lognormvariate(-5, 2) for edge in transformer_edges(n_layers, n_heads)}
    chosen = set(sorted(effects, key=lambda edge: -effects[edge])[:kept])
    return record_of(
        (
            decision(edge, -effect if signed and rng.random() < 0.3 else effect, edge in chosen)
            for edge, effect in effects.items()
        ),
        name="random",
        scored=True,
    )


def saved(record: dict[str, Any], folder: Path) -> Path:
    """The folder, with the record in it."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@st.composite
def acyclic_records(draw: st.DrawFn) -> dict[str, Any]:
    """Records over random names, each edge from an earlier name to a later one."""
    names = draw(st.lists(NODES, min_size=2, max_size=6, unique=True))
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=8, unique=True))
    return record_of(
        decision(f"{a}->{b}", draw(EFFECTS), draw(st.booleans()), exact=draw(st.booleans()))
        for a, b in chosen
    )
