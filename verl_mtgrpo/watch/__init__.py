"""Measure where credit went, and guard a run by these numbers."""
