"""Saved results as pictures: web pages that need nothing but a browser, and Graphviz files."""
