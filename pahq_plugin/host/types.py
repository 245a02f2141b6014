"""The host's types and functions that the rest of the package uses, unchanged."""

from __future__ import annotations

from typing import Literal

from auto_circuit.data import PromptDataLoader, PromptDataset, PromptPairBatch
from auto_circuit.types import AblationType, DestNode, Edge, Node, PruneScores, SrcNode
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from auto_circuit.utils.misc import remove_hooks
from auto_circuit.utils.patchable_model import PatchableModel

__all__ = [
    "AblationType",
    "DestNode",
    "Edge",
    "Node",
    "PatchableModel",
    "PromptDataLoader",
    "PromptDataset",
    "PromptPairBatch",
    "PruneScores",
    "SrcNode",
    "patch_mode",
    "patchable_model",
    "remove_hooks",
    "set_all_masks",
]

OutputSlice = Literal["last_seq", "not_first_seq"]
