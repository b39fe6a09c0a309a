"""Several roles that one policy plays: who there is, what each sees, who feeds whom and where a prompt forks.

Pure descriptions and plans, without verl. The agent loop that plays them is
:mod:`verl_mtgrpo.integration.rollout.roles_loop`.

Each output of a role is a row, which says in its ``extra_fields``:

* ``role``: the role's name;
* ``output_id``: the output's name within its prompt, such as ``1:3``;
* ``fed_by``: the ``output_id`` of each output whose text its prompt contains directly, joined by ``/``.

In the order ``alternate`` a row is a role's whole conversation, nothing feeds anything, and ``conversation`` says which
rows belong together.
"""

from verl_mtgrpo.roles.cast import Cast, read_cast
from verl_mtgrpo.roles.settings import Role, RolesSettings

ROLE = "role"
"""Where ``extra_fields`` of a row say which role wrote it."""
OUTPUT_ID = "output_id"
"""Where they say the output's name within its prompt."""
FED_BY = "fed_by"
"""Where they say whose outputs its prompt contains, joined by ``/``."""
CONVERSATION = "conversation"
"""Where they say which conversation a row belongs to; empty in the orders ``chain`` and ``graph``."""
FINISHED = "finished"
"""Where they say ``1`` if the conversation ended as it should, ``0`` if a limit ended it; empty without one."""
LEARNT = "learnt"
"""Where they say False if the row's tokens have mask 0 although the policy wrote them: of a frozen role, or written
only to find out what another output is worth. Its rewards are on its tokens all the same."""
ANSWERING = "answering"
"""Key of dumps: empty for an output of a role that is not the one that answers."""

__all__ = [
    "ANSWERING",
    "CONVERSATION",
    "FED_BY",
    "FINISHED",
    "LEARNT",
    "OUTPUT_ID",
    "ROLE",
    "Cast",
    "Role",
    "RolesSettings",
    "read_cast",
]
