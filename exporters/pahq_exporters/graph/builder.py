"""A thin layer over ``onnx.helper``: values by name, scopes, shared constants.

Graphs are built by hand because an automatic export turns scaled weights into ``Cast`` and ``Mul``,
which ONNX Runtime folds back into FP32 when it loads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from pahq_exporters.inputs import Value

OPSET = 21
IR_VERSION = 10

STORED = {
    torch.float32: TensorProto.FLOAT,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.float8_e5m2: TensorProto.FLOAT8E5M2,
    torch.int8: TensorProto.INT8,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}
"""torch dtype -> ONNX element type."""


class Builder:
    """Collects the nodes of one graph.

    Methods that add a node return the name of its (first) output.
    """

    def __init__(self) -> None:
        self.initialisers: dict[str, TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._scope: list[str] = []
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes added inside with ``name``."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def name(self, kind: str) -> str:
        """Return a new name."""
        self._count += 1
        return "/".join([*self._scope, f"{kind}_{self._count}"])

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, n_outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = self.name(kind)
        outputs = [name] if n_outputs == 1 else [f"{name}.{i}" for i in range(n_outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def tensor(self, name: str, value: Tensor) -> str:
        """Add an initialiser in the dtype of ``value``."""
        proto = TensorProto()
        proto.name, proto.data_type = name, STORED[value.dtype]
        proto.dims.extend(value.shape)
        plain = value.detach().cpu().contiguous()
        proto.raw_data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        self.initialisers[name] = proto
        return name

    def constant(self, value: object, dtype: type = np.float32) -> str:
        """Return a small constant; equal ones are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self.initialisers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """Return a constant list of integers."""
        return self.constant(values, np.int64)

    def scalar(self, value: int) -> str:
        """Return a constant integer, ``[]``."""
        return self.constant(value, np.int64)

    def reshape(self, x: str, *shape: int | str) -> str:
        """Reshape ``x``; a string names a value that holds one dimension, ``[1]``."""
        if all(isinstance(size, int) for size in shape):
            return self.op("Reshape", x, self.integers(*shape))  # type: ignore[arg-type]
        return self.op("Reshape", x, self.shape(*shape))

    def shape(self, *sizes: int | str) -> str:
        """Return a list of dimensions, some of which may be known only at run time."""
        parts = [self.integers(s) if isinstance(s, int) else s for s in sizes]
        return self.op("Concat", *parts, axis=0)

    def dimension(self, x: str, axis: int) -> str:
        """Return the size of one axis, ``[1]``."""
        end = {} if axis == -1 else {"end": axis + 1}
        return self.op("Shape", x, start=axis, **end)

    def slice(self, x: str, axis: int, first: int, last: int) -> str:
        """Return a slice of one axis."""
        return self.op("Slice", x, *(self.integers(number) for number in (first, last, axis, 1)))

    def unsqueeze(self, x: str, axis: int) -> str:
        """Insert an axis of size 1."""
        return self.op("Unsqueeze", x, self.integers(axis))

    def squeeze(self, x: str, axis: int) -> str:
        """Remove an axis of size 1."""
        return self.op("Squeeze", x, self.integers(axis))

    def swap_last(self, x: str, rank: int = 2) -> str:
        """Transpose the last two of ``rank`` axes."""
        return self.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])

    def branch(
        self, condition: str, then: Callable[[], Sequence[str]], other: Callable[[], Sequence[str]]
    ) -> list[str]:
        """Return the values of ``then`` if ``condition`` holds, else those of ``other``.

        Each adds its nodes to a subgraph and may read any value made before.
        """
        first, second = self._subgraph(then), self._subgraph(other)
        return self.ops("If", len(first.output), condition, then_branch=first, else_branch=second)

    def _subgraph(self, fill: Callable[[], Sequence[str]]) -> onnx.GraphProto:
        outer, self._nodes = self._nodes, []
        # The subgraph itself must produce its outputs.
        outputs = [self.op("Identity", value) for value in fill()]
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        made = helper.make_graph(self._nodes, self.name("branch"), [], infos)
        self._nodes = outer
        return made

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, [*self.initialisers.values()])
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="pahq_exporters",
        )
        helper.set_model_props(model, metadata)
        return model

    def rename(self, value: str, name: str) -> None:
        """Give a value the public name of an output."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"output/{name}"))


def value_info(value: Value) -> onnx.ValueInfoProto:
    """Convert an input or output to ONNX."""
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return helper.make_tensor_value_info(value.name, dtype, value.shape)
