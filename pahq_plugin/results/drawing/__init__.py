"""A circuit as a picture: interactive pages and Graphviz files."""
