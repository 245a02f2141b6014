"""From a model, prompts and a method to a result."""
