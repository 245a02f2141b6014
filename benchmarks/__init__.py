"""Reproducible measurements, and the training of the bundled model."""
