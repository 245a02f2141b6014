"""Load, convert, store, check and adapt models for patching."""
