"""Findings of a comparison as sentences, generated from its tables whatever they say."""

from __future__ import annotations

import pandas as pd

from pahq_plugin.compare.baselines import EXACT
from pahq_plugin.compare.page.charts import BEHAVIOUR_NAMES, Frames
from pahq_plugin.compare.page.readable import decimals

OURS, RIVAL, HOST = "pahq", "eap", "host-acdc"
LEAST = 3
"""The fewest edges of a circuit that is worth comparing."""


def findings(frames: Frames) -> list[str]:
    """Return all sentences that the tables allow, the most important first."""
    sentences = [same_circuits(frames), *rates(frames)]
    sentences += [small_end(problem, frames) for problem in dict.fromkeys(frames.searches["problem"])]
    return [sentence for sentence in sentences if sentence]


def same_circuits(frames: Frames) -> str:
    """Say whether ``pahq`` finds the circuits of FP32 ACDC."""
    rows = frames.searches[frames.searches["method"] == OURS].dropna(subset=["differing"])
    if rows.empty:
        return ""
    equal = int((rows["differing"] == 0).sum())
    decisions, differing = int(rows["edges"].sum()), int(rows["differing"].sum())
    if equal == len(rows):
        return (
            f"{OURS} found the circuit of {EXACT} in FP32, edge for edge, in all {equal} searches "
            f"({decisions:,} decisions), so its faithfulness is the same."
        )
    return (
        f"{OURS} found the circuit of {EXACT} in FP32 in {equal} of {len(rows)} searches; "
        f"{differing:,} of {decisions:,} decisions differ. All should be equal: please report this."
    )


def rates(frames: Frames) -> list[str]:
    """Give the ROC areas of problems with a known circuit."""
    if "roc_auc" not in frames.summary:
        return []
    known = frames.summary.dropna(subset=["roc_auc"])
    sentences = []
    for problem, rows in known.groupby("problem", sort=False):
        areas = dict(zip(rows["method"], rows["roc_auc"], strict=True))
        shown = ", ".join(
            f"{name} {areas[name]:.3f}"
            for name in ("ground-truth", OURS, EXACT, HOST, RIVAL, "eap-ig")
            if name in areas
        )
        sentence = f"On {problem}, where the circuit is known, ROC AUC: {shown}."
        if OURS in areas and HOST in areas and areas[OURS] < areas[HOST]:
            sentence += f" {OURS} is below the host's loop."
        sentences.append(sentence)
    return sentences


def small_end(problem: str, frames: Frames) -> str:
    """Compare ``pahq`` with EAP on small circuits of equal size: at the largest threshold that leaves at
    least `LEAST` edges."""
    points = frames.points[(frames.points["problem"] == problem) & (frames.points["size"] >= LEAST)]
    ours, rival = (points[points["method"] == name] for name in (OURS, RIVAL))
    shared = set(ours["threshold"]) & set(rival["threshold"])
    if not shared:
        return ""
    a, b = (rows[rows["threshold"] == max(shared)].iloc[0] for rows in (ours, rival))
    compared = [
        _versus(name, f"faithfulness_{behaviour}", a, b)
        for behaviour, name in BEHAVIOUR_NAMES.items()
        if not pd.isna(a.get(f"faithfulness_{behaviour}"))
    ]
    return (
        f"On {problem}, where circuits are small (threshold {max(shared):g}, {a['size']:.0f} edges), "
        f"the faithfulness of {OURS} {', and '.join(compared)}."
    )


def _versus(name: str, key: str, ours: pd.Series, rival: pd.Series) -> str:
    a, b = float(ours[key]), float(rival[key])
    apart = ours[f"{key}_low"] > rival[f"{key}_high"] or rival[f"{key}_low"] > ours[f"{key}_high"]
    if decimals(a, 2) == decimals(b, 2):
        return f"equals that of {RIVAL} in {name} ({decimals(a, 2)})"
    relation = "is above" if a > b else "is below"
    doubt = "" if apart else "; intervals overlap"
    numbers = f"{decimals(a, 2)} against {decimals(b, 2)}"
    return f"{relation} that of {RIVAL} in {name} ({numbers}{doubt})"
