"""Find the rows that verl's own reward function can score (``reward.turn.outcome=compute_score``).

verl chooses the rule by ``data_source``, and knows Search-R1's question sets under other names (``searchR1_nq``). Rows
written by ``mtgrpo data`` say ``nq``, the name under which verl reports validation metrics; they are translated here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from verl.utils.reward_score import default_compute_score

from verl_mtgrpo.data.known import KNOWN
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.rewards.answers import accepted_answers

PREFIX = "searchR1_"


def as_verl_knows_it(data_source: str, ground_truth: Any) -> tuple[str, Any]:
    """Return a row's ``data_source`` and ground truth as ``default_compute_score`` of verl reads them.

    Only question sets that verl scores by exact match are changed: the name, and the answers, which verl expects as
    ``{"target": …}``.
    """
    bare = data_source.removeprefix(PREFIX)
    if bare not in KNOWN:
        return data_source, ground_truth
    return PREFIX + bare, {"target": list(accepted_answers(ground_truth))}


def is_scored_by_verl(data_source: str) -> bool:
    """Return True if verl's reward function has a rule for rows of this ``data_source``.

    verl has no list of the names, so we call the function with an empty text and see whether it knows the name.
    """
    try:
        default_compute_score(PREFIX + data_source if data_source in KNOWN else data_source, "", None)
    except NotImplementedError as error:
        return "Reward function is not implemented" not in str(error)
    except Exception:  # there is a rule: it fails on the empty text
        return True
    return True


def refuse_unscored(file: str, sources: Iterable[str]) -> None:
    """Raise ``DataError`` if a file has rows that verl's reward function has no rule for.

    verl would raise ``NotImplementedError`` in every rollout of such a row.

    Args:
        file: Its name, for the message.
        sources: The ``data_source`` of its rows.
    """
    unknown = sorted(source for source in sources if not is_scored_by_verl(source))
    if unknown:
        raise DataError(
            f"{file} has rows with data_source {', '.join(map(repr, unknown))}, for which verl has no reward "
            "function, but reward.turn.outcome=compute_score calls it in every rollout",
            fix=(
                "set reward.custom_reward_function.path to your function, or set reward.turn.outcome=preset, or "
                f"give the rows a data_source that verl scores ({', '.join(KNOWN)}, or one of verl.utils.reward_score)"
            ),
        )
