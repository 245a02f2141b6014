"""``pahq compare``: methods side by side on the same prompts.

1. A `plan` names problems, methods, thresholds and seeds, and unfolds into searches.
2. `run` runs every search in a process of its own (`work`), then judges the circuits on held-out
   prompts; what is done already is not done again.
3. `tables` turns what lies on disk into tidy tables, `summary` into the tables people read.
4. `page` draws them.

Data flow one way, through files: plan -> searches -> judged circuits -> tables -> report.
"""
