"""The command line: commands, their options, their output."""

from __future__ import annotations


def main() -> None:
    """Run the command line: the entry point of the console script."""
    from pahq_plugin.cli.app import main as run

    run()
