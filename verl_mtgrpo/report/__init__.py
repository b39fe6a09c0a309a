"""Reports of a run: tables, curves, evaluation, the credit of each turn."""
