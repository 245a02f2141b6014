"""The incremental engine: recompute only what an edge can change, for many candidates at once."""
