"""Time and memory of a search against the size of the model, and what they say of larger models."""
