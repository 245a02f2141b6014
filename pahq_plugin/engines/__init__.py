"""Engines: how the effect of removing an edge is measured."""
