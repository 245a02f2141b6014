"""``python -m pahq_plugin`` is the command ``pahq``."""

from __future__ import annotations

from pahq_plugin.cli.app import main

if __name__ == "__main__":
    main()
