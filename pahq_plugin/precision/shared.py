"""The state that the stand-ins for a model's modules share."""

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
    """The precision, weights and streams of a backend, and the parts that are high at present."""

    precision: PrecisionConfig
    weights: LowWeights
    streams: Streams
    masters: Masters
    high: HighParts = NOTHING

    def low_copy(self, name: str, master: Tensor, number_format: NumberFormat) -> Quantised:
        """Return the low copy of a weight for activations in ``number_format``."""
        held = self.precision.weight_format(number_format)
        if self.masters.is_away(name):
            return self.weights.made(name, held)
        return self.weights.get(name, master, held)


def investigation(precision: PrecisionConfig, device: torch.device) -> Investigation:
    """Create the initial state of a backend on ``device``."""
    streams = Streams(device, precision.streams)
    weights = LowWeights(precision.scale, precision.kernel)
    return Investigation(precision, weights, streams, Masters(streams))


WEIGHT = "unembed.W_U"


def is_high(shared: Investigation) -> bool:
    """Return whether the unembedding is high at present."""
    high, number_format = shared.high, shared.precision.format_of("unembed")
    return high.everything or high.unembed or not number_format.is_low
