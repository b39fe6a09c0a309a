"""Print rollouts and their credit on a terminal: blue above 0, orange below, and always the number.

The text of a rollout goes into ``Text`` objects, which parse no markup, without control characters for the terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.console import Group as Lines
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from verl_mtgrpo.report.catalog import Catalog, Group
from verl_mtgrpo.report.overview import turn_rows
from verl_mtgrpo.report.rollouts import CreditedRollout, pick_rollouts, question_of
from verl_mtgrpo.report.why import Why, explain_group, in_words, signed
from verl_mtgrpo.rewards.transcript import Turn

_RESULT_CHARS = 240


def print_catalog(catalog: Catalog, console: Console) -> None:
    """Print what was read, and for each kind of rollouts the estimator and the advantages by turn."""
    rollouts = sum(1 for _ in catalog.entries())
    dropped = sum(entry.dropped for entry in catalog.entries())
    steps = sorted({group.step for group in catalog.groups})
    console.print(
        Text(
            f"{rollouts} rollouts of {len(catalog.groups)} groups, {dropped} dropped; "
            f"step{'s' if len(steps) > 1 else ''} {_span(steps)}, {len(catalog.files)} "
            f"file{'s' if len(catalog.files) > 1 else ''}"
        )
    )
    for training in (True, False):
        if groups := [group for group in catalog.groups if group.training is training]:
            console.print()
            console.print(_method(catalog, groups, training))
            console.print(_turn_table(groups))


def print_rollouts(catalog: Catalog, count: int, console: Console) -> None:
    """Print the rollouts that show best how credit works: both extremes of the groups that differ most."""
    # More groups than rollouts: groups in which all were paid the same yield one rollout, not two.
    widest = sorted(catalog.groups, key=lambda group: -group.spread)[:count]
    credited: list[CreditedRollout] = []
    why: dict[int, Sequence[Why]] = {}
    for group, rollouts in catalog.read_groups(widest):
        advantages = [entry.advantages for entry in group.entries]
        reasons = explain_group(rollouts, advantages, group.estimator)
        for rollout, mine, some in zip(rollouts, advantages, reasons, strict=True):
            credited.append(CreditedRollout(rollout, mine))
            why[id(rollout)] = some
    for one in pick_rollouts(credited, count):
        console.print()
        console.print(rollout_text(one, why[id(one.rollout)]))


def rollout_text(credited: CreditedRollout, why: Sequence[Why]) -> Lines:
    """Format one rollout: question, then each turn with its reward, its advantage and why, and tool results."""
    rollout = credited.rollout
    at = "" if rollout.step is None else f"step {rollout.step}, "
    lines = [
        _line(0, Text(f"{at}{one_line(rollout.role or 'rollout')} {rollout.number} of the question", style="dim")),
        _line(0, Text("question: " + (one_line(question_of(rollout.transcript)) or "(no user message)"), style="bold")),
        _line(0, Text("accepted: " + one_line(" | ".join(rollout.answers)))),
    ]
    turns = zip(rollout.transcript.turns, rollout.turn_rewards, credited.advantages, why, strict=True)
    notes = rollout.notes or ("",) * len(rollout.turn_rewards)
    for number, (turn, reward, advantage, reason) in enumerate(turns, start=1):
        parts = "".join(f"{one_line(name)} {signed(some[number - 1], 3)}   " for name, some in rollout.dense.items())
        head = Text(f"turn {number}   reward {signed(reward)}   {parts}")
        lines.append(_line(2, head.append(f"advantage {signed(advantage)}", style=_style(advantage))))
        lines.append(_line(4, Text(f"why: {one_line(reason.words)}", style="dim")))
        if note := notes[number - 1]:
            lines.append(_line(4, Text(f"reward function: {one_line(note)}", style="dim")))
        lines += [_line(4, Text(line)) for line in _turn_lines(turn)]
    if rollout.outcome_note:
        lines.append(_line(2, Text(f"outcome: {one_line(rollout.outcome_note)}", style="dim")))
    parts = [f"{one_line(name)} {value:g}" for name, value in sorted(rollout.components.items())]
    return Lines(*lines, _line(2, Text("measured: " + ", ".join(parts), style="dim")))


def one_line(text: str) -> str:
    """Put text on one line, without control characters for the terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split())
    )


def _line(indent: int, text: Text) -> Padding:
    """Return a paragraph; wrapped lines keep the indent."""
    return Padding(text, (0, 0, 0, indent), expand=False)


def _turn_lines(turn: Turn) -> list[str]:
    lines = ["model: " + one_line(turn.text)]
    for call in turn.tool_calls:
        kind = f"{call.error_kind}: {call.why}" if call.why else call.error_kind
        said = call.result if call.ok else f"[{kind}] {call.result}"
        unseen = "" if call.seen or not call.ok else " (did not fit; the model never saw it)"
        result = textwrap.shorten(one_line(said), _RESULT_CHARS, placeholder=" […]")
        lines.append(f"{one_line(call.name)}{unseen}: {result}")
    return lines


def _method(catalog: Catalog, groups: Sequence[Group], training: bool) -> Text:
    text = Text()
    for name in sorted({group.estimator for group in groups}):
        if training:
            knobs = "; or ".join(", ".join(f"{k} = {v}" for k, v in some.items()) for some in catalog.estimators[name])
            text.append(f"training rollouts, advantages as trained on by {one_line(name)}", style="bold")
            text.append(f" ({one_line(knobs)})" if knobs else "")
        else:
            text.append(
                f"validation rollouts, advantages recomputed as {name}: nothing is trained on a validation",
                style="bold",
            )
        text.append(f"\n{in_words(name)}\n")
    text.rstrip()
    return text


def _turn_table(groups: Sequence[Group]) -> Table:
    table = Table()
    names = ("turn", "rollouts", "mean reward", "mean advantage", "mean |advantage|", "std", "no difference")
    for name in names:
        table.add_column(name, justify="right")
    for row in turn_rows(groups):
        table.add_row(
            str(row.turn),
            str(row.rollouts),
            f"{row.reward:.3f}",
            Text(signed(row.advantage, 3), style=_style(row.advantage)),
            f"{row.absolute:.3f}",
            f"{row.std:.3f}",
            "–" if row.no_difference is None else f"{row.no_difference:.0%}",
        )
    return table


def _style(advantage: float) -> str:
    """Return a style that is distinguishable with red-green colour blindness."""
    if abs(advantage) < 0.005:
        return ""
    return "bold #56b4e9" if advantage > 0 else "bold #e69f00"


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
