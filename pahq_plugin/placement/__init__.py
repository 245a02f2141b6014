"""Models larger than memory: what stays, what comes when it is needed.

``plan`` divides a budget of bytes; ``window`` holds what comes and goes; ``place`` puts a model's
weights and caches where the plan wants them. `host.stored` writes models as files, a block each.
"""
