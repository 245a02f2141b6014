"""Definitions of a report's measures, for its page."""

from __future__ import annotations

DEFINITIONS: tuple[tuple[str, str, str], ...] = (
    (
        "ROC AUC",
        "The chance that an edge of the published circuit ranks above another edge. A search "
        "ranks edges by the smallest threshold that removes them, as the host does.",
        "Conmy et al. 2023, arXiv 2304.14997; scikit-learn",
    ),
    (
        "pessimistic",
        "The area under the staircase through the circuits: at each false positive rate, the best true "
        "positive rate of a circuit with at most that rate. Nothing is assumed between circuits.",
        "Conmy et al. 2023, arXiv 2304.14997",
    ),
    (
        "faithfulness",
        "(m(C) - m(none)) / (m(all) - m(none)): m is the logit difference of right and wrong "
        "answers, or minus the loss; C is the circuit, with all other edges patched; in none, "
        "every edge is patched.",
        "Wang et al. 2022, arXiv 2211.00593; Mueller et al. 2025 (MIB), arXiv 2504.13151",
    ),
    (
        "completeness",
        "1 minus the faithfulness of all edges outside the circuit: 1 if none of the behaviour is "
        "left there.",
        "Marks et al. 2024, arXiv 2403.19647",
    ),
    (
        "CPR and CMD",
        "The area under the curve of faithfulness against the share of edges kept (larger is "
        "better), and the area between that curve and 1 (smaller is better), from no edge to all. "
        "Curves are straight between the sizes measured; a search has one size per threshold.",
        "Mueller et al. 2025 (MIB), arXiv 2504.13151",
    ),
    (
        "loss",
        "KL divergence between the next-token distributions of the whole model and the circuit, in "
        "nats; for a model with a single output, the mean squared difference.",
        "Conmy et al. 2023, arXiv 2304.14997",
    ),
    (
        "accuracy",
        "The share of output positions at which the largest logit is that of a right answer.",
        "",
    ),
    (
        "differs from FP32",
        "Decisions that differ from those of the FP32 search: edges that only one of the two keeps, "
        "over all thresholds and seeds.",
        "",
    ),
    (
        "Jaccard",
        "Edges in both circuits over edges in either: between seeds at each threshold, and between "
        "neighbouring thresholds.",
        "",
    ),
    ("plain forwards", "Time divided by that of one unpatched forward pass of the same prompts.", ""),
    (
        "intervals",
        "95 %, from 1,000 resamples of the seeds and, within each seed, of its held-out prompts. With "
        "few seeds they say little about other seeds.",
        "Davison & Hinkley 1997, section 3.8",
    ),
)
"""Name, definition and source."""
