"""The report of a comparison: a web page, tables and plots."""
