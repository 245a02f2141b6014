"""Exports for pahq_plugin: ONNX and interchange formats land here; it holds no code yet.

This package may import ``pahq_plugin``; ``pahq_plugin`` never imports it.
"""
