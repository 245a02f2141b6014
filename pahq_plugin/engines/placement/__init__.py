"""Models larger than memory: what stays, and what comes when it is needed."""
