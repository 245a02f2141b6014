"""Oracles and small models for the tests, written from the contract and the host alone.

Nothing here imports the plugin: what checks a program must not share its mistakes.
"""
