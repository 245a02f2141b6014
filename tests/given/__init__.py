"""What is loaded, saved and exported is the model that was given, or is refused by name."""
