"""Drawings of a circuit: interactive pages and Graphviz files."""
