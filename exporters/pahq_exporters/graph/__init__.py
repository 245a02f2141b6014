"""A host model as an ONNX graph."""
