"""Rows of :mod:`.test_start` for E29, E31 and E34: reward functions, and the tools of an agent."""

from __future__ import annotations

from tests.doctor.setups import TURNS
from tests.regressions.start_setups import SCORE, fails, is_sound, own_tool, reward, rows, score, warns

SHORT = f"{TURNS}.max_tool_response_length=400"  # fits into the 160 tokens of the healthy set-up
GOOD = "return TurnRewards(tuple(0.5 for _ in transcript.turns), 1.0, {'outcome/mine': 1.0})"

REWARDS = [
    # ---- E29: the reward function, called once
    is_sound(
        "E29",
        "a right one",
        "reward",
        r"gives a made-up rollout of 2 turns 0.5, 0.5 and an outcome of 1",
        make=reward(GOOD),
    ),
    is_sound("E29", "docs: may be async", "reward", r"2 turns 0.5, 0.5", make=reward(GOOD, kind="async def")),
    is_sound(
        "E29",
        "docs: DropRollout is for what cannot be scored",
        "reward",
        r"drops a made-up rollout of 2 turns: not today",
        make=reward("from verl_mtgrpo.errors import DropRollout; raise DropRollout('not today')"),
    ),
    fails(
        "E29",
        "row 32",
        "reward",
        r"returned float, expected verl_mtgrpo.rewards.TurnRewards",
        make=reward("return 1.0"),
    ),
    fails("E29", "row 32", "reward", r"returned NoneType, expected", make=reward("pass")),
    fails("E29", "row 32", "reward", r"returned tuple, expected", make=reward("return (0.5, 0.5), 1.0")),
    fails(
        "E29",
        "row 32",
        "reward",
        r"takes \(transcript\), which does not fit: too many positional",
        make=reward(GOOD, arguments="transcript"),
    ),
    fails(
        "E29",
        "row 32",
        "reward",
        r"missing a required argument: 'extra'",
        make=reward(GOOD, arguments="transcript, ground_truth, extra"),
    ),
    warns(
        "E29", "row 33", "reward", r"gave 1 turn rewards for 2 turns", make=reward("return TurnRewards((0.5,), 1.0)")
    ),
    warns(
        "E29",
        "row 34",
        "reward",
        r"turns=\(nan, 0.0\).*expected finite numbers",
        make=reward("return TurnRewards((float('nan'), 0.0), 1.0)"),
    ),
    warns(
        "E29",
        "row 34",
        "reward",
        r"outcome=inf, expected finite",
        make=reward("return TurnRewards((0.0, 0.0), float('inf'))"),
    ),
    warns(
        "E29",
        "kind of row 32",
        "reward",
        r"outcome=None, expected a number",
        make=reward("return TurnRewards((0.0, 0.0), None)"),
    ),
    warns(
        "E29",
        "row 32: file and line",
        "reward",
        r"raises ZeroDivisionError: .*mine.py, line 3\)",
        make=reward("return 1 / 0"),
    ),
    fails(
        "E29",
        "row 31",
        "reward",
        r"mine.py cannot be loaded: SyntaxError: .*mine.py, line 3\)",
        make=reward("return ("),
    ),
    fails(
        "E29",
        "kind of row 31",
        "reward",
        r"mine.py cannot be loaded: KeyError: 'K' \(.*mine.py, line 4\)",
        make=reward("pass\nimport os; os.environ['K']"),
    ),
    fails(
        "E29",
        "row 35",
        "reward",
        r"names a component tool/used, which is a metric of verl-mtgrpo",
        make=reward("return TurnRewards((0., 0.), 1., {'tool/used': 1.})"),
    ),
    fails(
        "E29",
        "row 24",
        "reward",
        r"row 0 .* has no reward_model.ground_truth",
        make=rows(lambda row: row["reward_model"].pop("ground_truth"), reward(GOOD)),
    ),
    warns(
        "E29",
        "row 24",
        "reward",
        r"raises TypeError: .*the ground truth is 7, a int",
        make=rows(
            lambda row: row["reward_model"].update(ground_truth=7),
            reward("return TurnRewards((0, 0), len(ground_truth))"),
        ),
    ),
    is_sound(
        "E29",
        "a function of one's own that takes a number",
        "reward",
        r"an outcome of 7",
        make=rows(
            lambda row: row["reward_model"].update(ground_truth=7), reward("return TurnRewards((0, 0), ground_truth)")
        ),
    ),
    is_sound(
        "E29",
        "verl's reward function",
        "reward",
        r"compute_score gives the text of a made-up rollout 0.5",
        *SCORE,
        make=score("return {'score': 0.5, 'acc': 1}"),
    ),
    fails("E29", "kind of row 32", "reward", r"returned 'yes', expected a number", *SCORE, make=score("return 'yes'")),
    fails("E29", "kind of row 32", "reward", r"returned None, expected a number", *SCORE, make=score("pass")),
    warns(
        "E29",
        "kind of row 34",
        "reward",
        r"returned nan, expected a finite number",
        *SCORE,
        make=score("return float('nan')"),
    ),
    fails(
        "E29",
        "kind of row 32",
        "reward",
        r"does not fit: got an unexpected keyword argument 'extra_info'",
        *SCORE,
        make=score("return 1", "data_source, solution_str, ground_truth"),
    ),
    warns(
        "E29",
        "kind of row 32",
        "reward",
        r"raises ValueError: no \(.*score.py, line 2\)",
        *SCORE,
        make=score("raise ValueError('no')"),
    ),
    fails("E29", "kind of row 31", "reward", r"score.py cannot be loaded: SyntaxError", *SCORE, make=score("return (")),
    # ---- E31: the user's tools and the group's search tool
    is_sound("E31", "F9", "tools", r"^sql; $", SHORT, make=own_tool, env={"MTGRPO_INDEX": ""}),
    is_sound("E31", "row 40", "tools", r"^sql; $", SHORT, make=own_tool),
    is_sound(
        "E31",
        "both, asked for",
        "tools",
        r"search \(k=3\), sql",
        f"{TURNS}.tool_config_path='${{mtgrpo_asset:tools/search_tool.yaml}}'",
        make=own_tool,
    ),
    # ---- E34
    fails(
        "E34",
        "a value that would do nothing",
        "rewards",
        r"solution=response would not be used",
        "reward.turn.solution=response",
    ),
    fails(
        "E34",
        "kind of row 15",
        "rewards",
        r"solution is 'respons', .*did you mean response\?",
        "reward.turn.solution=respons",
    ),
]
