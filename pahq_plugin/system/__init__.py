"""Utilities around the process and the machine: files, memory, progress, random state."""
