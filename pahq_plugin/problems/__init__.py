"""Problems ready to search: a model, paired prompts, and the published circuit if there is one."""

from __future__ import annotations

from pahq_plugin.problems.load import Problem, load_problem, problem_names

__all__ = ["Problem", "load_problem", "problem_names"]
