"""Results of a search: in memory, as files, as tables and as pictures."""
