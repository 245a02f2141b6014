"""Tests of the plugin and the exporters; what they share stands in `tests.helpers`."""
