"""Find a circuit: from a model, prompts and a method to a result."""
