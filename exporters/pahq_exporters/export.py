"""``export_onnx``: write a host model's patched forward as an ONNX file and optionally compare it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pahq_exporters.description import GraphKind
from pahq_exporters.graph.write import export_if, require
from pahq_exporters.runtime.arrays import token_ids
from pahq_plugin.errors import ConfigError
from pahq_plugin.host import PatchableModel
from pahq_plugin.models.checks import check_patchable
from pahq_plugin.precision.config import PrecisionConfig


def export_onnx(
    model: PatchableModel,
    path: str | os.PathLike[str],
    *,
    graph: GraphKind = "dense",
    precision: PrecisionConfig | None = None,
    start_layer: int = 0,
    example: Tensor | None = None,
    head: tuple[int, int] | None = None,
    positions: str = "all",
    external_data: bool | None = None,
) -> Path:
    """Write the patched forward of a host model as an ONNX graph (opset 21, IR 10).

    If the investigated head is chosen at run time, ``NAME.heads.safetensors`` beside ``NAME.onnx`` holds
    the FP32 weights of every head. Graphs of more than 2 GiB also have ``NAME.onnx.data``.

    Args:
        model: a factorized host model of a transformer.
        path: the file to write.
        graph: ``"dense"``: any set of edges patched at once; ``"sweep"``: single edges into one
            destination, several sources at a time. `pahq_exporters.graph.dense` and
            `pahq_exporters.graph.sweep` list the inputs.
        precision: formats of heads and MLPs; by default E4M3 weights and FP32 activations.
            ``activations="low"`` rounds activations, too (``QuantizeLinear``); the policies
            ``"uniform"`` and ``"full"`` mean no investigated head.
        start_layer: first block of the graph.
        example: token ids ``[batch, pos]`` on which to compare the written graph with the model, as
            `pahq_exporters.check` does.
        head: ``(layer, head)`` that is always in FP32, instead of one chosen at run time.
        positions: logits at ``"all"`` positions, or only those of the ``"model"``'s output slice.
        external_data: whether to write weights to a separate file; by default only if necessary.

    Returns:
        ``path``.

    Raises:
        ExportError: the ``onnx`` extra is missing, a graph cannot represent the model, or the comparison
            on ``example`` failed. No file is left behind.
        ModelError: the model's edges cannot be patched faithfully.
        ConfigError: an invalid option.
    """
    require("onnx")
    check_patchable(model)
    accept = None
    if example is not None:
        require("onnxruntime")
        if start_layer:
            raise ConfigError(f"example needs a graph that takes tokens; start_layer is {start_layer}")
        shown = token_ids(example, "example", model.cfg.n_ctx, model.cfg.d_vocab, model.seq_len)
        from pahq_exporters.check import compare_on

        accept = partial(compare_on, model=model, example=torch.from_numpy(shown))
    return export_if(
        accept, model, path, graph, precision, start_layer, head=head, positions=positions,
        external_data=external_data,
    )  # fmt: skip
