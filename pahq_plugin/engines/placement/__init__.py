"""Models larger than memory: what stays in memory, and what is loaded when needed."""
