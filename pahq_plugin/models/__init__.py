"""Models made patchable: adapted, converted, stored, checked."""
