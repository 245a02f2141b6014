"""``pahq compare``: methods side by side on the same prompts.

1. A `plan` names problems, methods, thresholds and seeds, and expands into searches.
2. `run` runs each search in its own process (`work`), then judges the circuits on held-out prompts.
   Finished work is not repeated.
3. `tables` turns the files into tidy tables, and `summary` into tables for reading.
4. `page` draws them.

Data flows one way, through files: plan -> searches -> judged circuits -> tables -> report.
"""
