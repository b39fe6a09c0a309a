"""Turn-level credit assignment for LLM agents trained with verl.

Importing this package is light: no torch, no verl, no Ray. The parts:

- ``verl_mtgrpo.credit``: advantages per turn, pure functions on tensors;
- ``verl_mtgrpo.rewards``: rewards per turn, pure functions of a transcript;
- ``verl_mtgrpo.retrieval``: search over passages, usable without RL;
- ``verl_mtgrpo.plugin``: what verl loads through its ``verl.plugins`` entry point.
"""

from verl_mtgrpo.version import __version__

__all__ = ["__version__"]
