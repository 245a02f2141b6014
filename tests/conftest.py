"""Settings of every test."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # the tests run side by side, and their models are tiny
