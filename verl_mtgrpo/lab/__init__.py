"""Measure bias and variance of estimators where the exact policy gradient is known: the laboratory.

A :class:`Process` is a small multi-turn task with a given policy, both written as a table. Its policy
gradient is computed exactly. :func:`measure` samples groups of rollouts from the task, hands them to an
estimator as verl would, and compares the gradients that follow from the advantages with the exact one.
"""

from verl_mtgrpo.lab.measure import Measurement, measure
from verl_mtgrpo.lab.process import Action, Process, Rollouts
from verl_mtgrpo.lab.processes import PROCESSES

__all__ = ["PROCESSES", "Action", "Measurement", "Process", "Rollouts", "measure"]
