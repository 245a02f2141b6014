"""What the stand-ins for a model's modules share: the investigated parts, and where weights are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_plugin.precision.config import PrecisionConfig
from pahq_plugin.precision.formats import NumberFormat, Quantised
from pahq_plugin.precision.offload import Masters
from pahq_plugin.precision.policy import NOTHING, HighParts
from pahq_plugin.precision.streams import Streams
from pahq_plugin.precision.weights import LowWeights


@dataclass
class Investigation:
    """What a backend's modules share: the precision, weights, streams, and the parts that are high at
    present."""

    precision: PrecisionConfig
    weights: LowWeights
    streams: Streams
    masters: Masters
    high: HighParts = NOTHING

    def low_copy(self, name: str, master: Tensor, number_format: NumberFormat) -> Quantised:
        """The low copy of a weight for activations in ``number_format``."""
        held = self.precision.weight_format(number_format)
        if self.masters.is_away(name):
            return self.weights.made(name, held)
        return self.weights.get(name, master, held)


def investigation(precision: PrecisionConfig, device: torch.device) -> Investigation:
    """What a backend on ``device`` begins with."""
    streams = Streams(device, precision.streams)
    weights = LowWeights(precision.scale, precision.kernel)
    return Investigation(precision, weights, streams, Masters(streams))


WEIGHT = "unembed.W_U"


def is_high(shared: Investigation) -> bool:
    """Whether the unembedding is high at present."""
    high, number_format = shared.high, shared.precision.format_of("unembed")
    return high.everything or high.unembed or not number_format.is_low
