"""Problems ready to search: a model, prompts in pairs, and the circuit where one is published."""

from __future__ import annotations

from pahq_plugin.problems.load import Problem, load_problem, problem_names

__all__ = ["Problem", "load_problem", "problem_names"]
