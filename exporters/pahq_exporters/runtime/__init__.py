"""Run an exported graph with numpy and ONNX Runtime alone."""
