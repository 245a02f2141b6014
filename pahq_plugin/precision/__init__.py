"""Number formats, and a model run in them."""
