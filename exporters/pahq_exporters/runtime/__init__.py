"""Run an exported graph with only numpy and ONNX Runtime."""
