"""Names, types and shapes of what goes into a graph and comes out of it."""

from __future__ import annotations

from onnx import TensorProto, ValueInfoProto, helper

from pahq_exporters.description import Description


def inputs(described: Description) -> list[ValueInfoProto]:
    """Inputs in order."""
    width, shapes = described.d_model, []
    length = "pos" if described.seq_len is None else described.seq_len
    if described.start_layer == 0:
        shapes.append(("tokens", TensorProto.INT64, ["batch", length]))
    else:
        shapes.append(("residual", TensorProto.FLOAT, ["batch", length, width]))
        shapes.append(("earlier", TensorProto.FLOAT, [described.n_earlier, "batch", length, width]))
    if described.graph == "dense":
        n_sources = len(described.sources)
        shapes.append(("mask", TensorProto.FLOAT, ["candidate", *described.mask_shape]))
        shapes.append(("corrupt", TensorProto.FLOAT, [n_sources, "batch", length, width]))
        if described.high == "input":
            shapes.append(("hi_layer", TensorProto.INT64, []))
            shapes.append(("hi_head", TensorProto.INT64, []))
    else:
        shapes.append(("src", TensorProto.INT64, ["edge"]))
        shapes.append(("corrupt", TensorProto.FLOAT, ["edge", "batch", length, width]))
        for name in ("dest_layer", "dest_slot", "hi_head"):
            shapes.append((name, TensorProto.INT64, []))
    if described.high == "input":
        shapes.append(("w_hi", TensorProto.FLOAT, [4, width, described.d_head]))
    return [helper.make_tensor_value_info(*shape) for shape in shapes]


def outputs(described: Description) -> list[ValueInfoProto]:
    """Outputs in order."""
    first = "candidate" if described.graph == "dense" else "edge"
    length = "pos" if described.seq_len is None else described.seq_len
    seen = {"all": [length], "last": [], "not_first": ["pos_from_1"]}[described.positions]
    rows = "candidate_batch" if described.graph == "dense" else "batch"
    sources = [len(described.sources), rows, length, described.d_model]
    return [
        helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, [first, "batch", *seen, described.d_vocab_out]
        ),
        helper.make_tensor_value_info("sources", TensorProto.FLOAT, sources),
    ]
