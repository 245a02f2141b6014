"""The only readers of auto-circuit and TransformerLens; everything else asks this package.

``types`` re-exports the host's own types; ``graph`` orders nodes and edges; ``model`` checks a model
and gives its state back; ``patching`` runs patched forwards; ``adapt`` makes models patchable;
``hugging_face`` converts those of transformers (``hf_configs``, ``hf_folder``); ``problems`` builds
models and tasks.
"""

from __future__ import annotations

from pahq_plugin.host.types import *  # noqa: F403  (the names in its __all__)
