"""Build a host model as an ONNX graph."""
