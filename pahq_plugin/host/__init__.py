"""The host's types, graph, prompts, patched forwards, algorithms and tasks.

``types`` re-exports the host's types; ``graph`` orders nodes and edges; ``prompts`` checks a loader's
batches; ``lending`` borrows a model's state and restores it; ``patching`` runs patched forwards;
``algorithms`` and ``tasks`` use the host's registries.
"""

from __future__ import annotations

from pahq_plugin.host.types import *  # noqa: F403  (the names in its __all__)
