"""Number formats, and running a model in them."""
