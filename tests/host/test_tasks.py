"""Entries in the host's table of tasks."""

from __future__ import annotations

from pahq_plugin.problems import load_problem


def test_task_is_entered_in_the_host_once() -> None:
    from auto_circuit.tasks import TASK_DICT

    load_problem("ioi")
    problem = load_problem("ioi", batch_size=4)
    assert [key for key in TASK_DICT if key.startswith("pahq: ioi")].count(problem.task.key) == 1
    task = TASK_DICT[problem.task.key]
    assert task is problem.task
    assert task.model is problem.model and task.true_edges is None and task.true_edge_count is None
    assert task.train_loader is problem.train_loader and task.test_loader is problem.test_loader
    assert (task.batch_size, task.batch_count) == ((4, 4), (4, 8))
