"""Let policies of a few logits learn, and find out when turn-level credit matters: ``mtgrpo lab learn``.

A :class:`Task` is a graph of yes-or-no decisions and chance, so every value of a policy is known exactly. :func:`learn`
samples groups of rollouts, hands them to an estimator as verl would, and takes steps of the same length for every
method. :func:`expected` works out what an estimator says on average, over every group that can be sampled.
"""

from verl_mtgrpo.lab.learn.exact import differing, expected
from verl_mtgrpo.lab.learn.files import EXAMPLE, load_task
from verl_mtgrpo.lab.learn.learner import Budget, Curves, learn
from verl_mtgrpo.lab.learn.maps import MAPS, Cell, Map, draw_up, thinned
from verl_mtgrpo.lab.learn.methods import DEFAULT, Method, method, methods
from verl_mtgrpo.lab.learn.task import Node, Task, Way
from verl_mtgrpo.lab.learn.tasks import TASKS, make
from verl_mtgrpo.lab.learn.verdicts import DEFINITIONS, first_step, most, verdicts

__all__ = [
    "DEFAULT",
    "DEFINITIONS",
    "EXAMPLE",
    "MAPS",
    "TASKS",
    "Budget",
    "Cell",
    "Curves",
    "Map",
    "Method",
    "Node",
    "Task",
    "Way",
    "differing",
    "draw_up",
    "expected",
    "first_step",
    "learn",
    "load_task",
    "make",
    "method",
    "methods",
    "most",
    "thinned",
    "verdicts",
]
