"""What is typed: the commands, their options, what they print."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point of the console script."""
    from pahq_plugin.cli.app import main as run

    run()
