"""The texts of a switched recipe."""

RUN = """\
#!/usr/bin/env bash
# {what}, unchanged, with turn-level credit: its own command plus the overrides below. Written by `mtgrpo init`.
#
#   mtgrpo doctor -- bash {run}               # checks the command, trains nothing
#   mtgrpo doctor --try-step -- bash {run}    # two steps of it on this machine's CPU, with a tiny policy
#   bash {run} [{arguments}]
set -euo pipefail

HERE=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
overrides=(
{overrides}
)
{command}
"""

WRAPS = """\
# The script cannot be given overrides, so bin/ stands before your Python while it runs and adds them to verl's command.
MTGRPO_OVERRIDES=$(printf '%q ' "${{overrides[@]}}")
export MTGRPO_OVERRIDES PATH="$HERE/bin:$PATH"
exec bash {script} "$@\""""

WRAPPER = """\
#!/usr/bin/env bash
# Adds the overrides of run.sh to the command of verl's trainer; any other program runs as it is.
name=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=${PATH#"$HERE:"}
for word in "$@"; do
    if [[ $word == verl.trainer.main_ppo || $word == *main_ppo.py ]]; then
        eval "overrides=($MTGRPO_OVERRIDES)"
        unset MTGRPO_OVERRIDES
        exec "$name" "$@" "${overrides[@]}"
    fi
done
exec "$name" "$@"
"""

_HEAD = '''\
"""What each turn earns in {what}. After a change: {doctor}"""

from typing import Any

from verl_mtgrpo.rewards import Transcript, TurnRewards
'''
_IMPORTS = "from verl_mtgrpo.rewards.answers import accepted_answers, exact_match, last_answer\n"
_BODY = '''
# What the first call of a tool that works earns, by the tool's name ({where}).
WORTH = {{{worth}}}
# What a call costs that fails: an unknown tool, bad arguments, or a tool that answers {{"ok": False}}. A call that is
# no JSON ends the rollout, so it is in the last turn, which earns the outcome alone: it costs nothing here.
FAILED = -0.1


def turn_rewards(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Pay each turn for its calls; the last turn earns the outcome alone, as in the paper."""
    paid = [0.0 for _ in transcript.turns]
    notes: list[list[str]] = [[] for _ in transcript.turns]  # why, for `mtgrpo report`
    worked: set[str] = set()
    for k, turn in enumerate(transcript.turns[:-1]):
        for call in turn.tool_calls:
            if not call.ok:
                paid[k] += FAILED
                notes[k].append(f"{{call.name}} failed: {{call.why or call.error_kind}}")
            elif call.name not in worked:  # only the first, so that calling more often does not pay
                paid[k] += WORTH.get(call.name, 0.0)
                worked.add(call.name)
                if WORTH.get(call.name):
                    notes[k].append(f"first {{call.name}} that worked")
            # paid[k] += call.reward  # what the tool itself says that the call is worth
    used = {{f"tool/{{name}}_worked": float(name in worked) for name in WORTH}}  # each becomes a metric
    why = tuple("; ".join(one) for one in notes)
'''
_SCORED = """\
    # The outcome is verl's reward function, as before (reward.turn.outcome): it replaces this 0.
    return TurnRewards(turns=tuple(paid), outcome=0.0, components=used, notes=why)
"""
_EXACT = """\
    right = exact_match(last_answer([turn.text for turn in transcript.turns]), accepted_answers(ground_truth))
    used["outcome/em"] = float(right)
    return TurnRewards(turns=tuple(paid), outcome=float(right), components=used, notes=why)
"""
REWARDS = {True: f"{_HEAD}{_BODY}{_SCORED}", False: f"{_HEAD}{_IMPORTS}{_BODY}{_EXACT}"}
"""``turn_rewards.py``: with the outcome of verl's reward function (True), or with one of its own."""
