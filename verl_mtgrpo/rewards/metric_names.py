"""Describe the metrics of this package by name. ``docs/metrics.md`` is generated from these tables.

In a name, ``<k>`` is the number of a turn, counted from 1; any other ``<word>`` stands for one of several words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ROLLOUT_METRICS = {
    "turn/count": "Turns of the rollout.",
    "turn/<k>/reward": "What turn k was paid; averaged over the rollouts that have a turn k.",
    "outcome/reward": "The outcome reward, of the preset or of `compute_score`, whether or not it is paid.",
    "outcome/dropped": "1 if the rollout was dropped: it left the batch and affected no baseline.",
    "outcome/truncated": "1 if the response was full before the rollout ended (`data.max_response_length`).",
    "tool/used": (
        "1 if at least one tool call was carried out: the tool ran and reported no failure (`ok`). `tool/calls` counts "
        "every attempt."
    ),
    "tool/success": "Share of the rollout's tool calls that were carried out; undefined without a call.",
    "tool/repeats": "Searches that this rollout had made before.",
    "tool/calls": "Tool calls that the model wrote, carried out or not.",
    "tool/failures": "Tool calls that failed or were never carried out.",
    "tool/errors/<kind>": "The same by kind of error; absent where it is 0.",
    "tool/retries": "Requests to a search service that failed and were repeated.",
    "tool/retried/<kind>": "The same by kind of error; absent where it is 0.",
    "tool/no_hits": "Searches that worked and found nothing.",
    "tool/outage": "1 if the rollout ended because its search was down.",
    "tool/latency_s": "Seconds that its longest tool call took; undefined without a call.",
    "tool/defused": "Results that contained control tokens of the model, broken up by a space; absent where it is 0.",
}
"""Numbers of each rollout, with every reward function: averaged per step in training, per data source in validation."""

DECIDE_METRICS = {
    "decide/changed": "Share of the rollout's turns in which another than the first proposal was taken.",
    "decide/candidates": "Proposals per turn, attempts that were sent back included.",
    "decide/extra_tokens": "Generated tokens that are in no turn of the rollout.",
    "decide/rejected": "Attempts that were sent back (`retry`).",
    "decide/log_weight": "Log of how much likelier the decisions were than the policy's own turns (`posterior`).",
}
"""Numbers of each rollout whose turns were decided (`mtgrpo_decide_agent`)."""

ROLE_METRICS = {
    "role/<name>/reward": "What the outputs of this role were paid by themselves, format penalty included; the outcome "
    "only where no other role reads on, or in a conversation.",
    "role/<name>/turns": "Turns of this role's outputs.",
    "role/<name>/format": "Share of its outputs that match the role's `pattern`; undefined without one.",
    "role/<name>/penalty": "What was taken from an output because it does not match; undefined without a `pattern`.",
    "role/<name>/finished": "Share of its conversations that ended as they should; undefined outside of one.",
    "role/<name>/dropped": "Share of its outputs that were dropped.",
    "role/<name>/zero_variance": "Share of the groups (question, role) of two or more outputs that were all worth the "
    "same; of a training step.",
}
"""Numbers of each output of a role (`mtgrpo_roles_agent`)."""

STEP_METRICS = {
    "turn/<k>/rollouts": "Rollouts that have a turn k.",
    "turn/<k>/reward_total": "Mean reward of turn k as the estimator saw it, with a KL penalty in the reward and dense "
    "rewards.",
    "turn/<k>/dense/<name>": "What the dense reward of this name added to turn k (`trainer.turn.dense`).",
    "timing_s/probe": "Seconds that measuring the gold answer took (`trainer.turn.probe`), beside verl's own "
    "`timing_s/old_log_prob`.",
    "turn/<k>/advantage_mean": "Mean advantage of turn k over the rollouts that have it.",
    "turn/<k>/advantage_std": "Standard deviation of the same.",
    "turn/<k>/zero_variance": "Share of the groups in which turn k earned the same in every rollout that has it.",
    "turn/<k>/sign_conflict": "Of the rollouts that earned more or less at turn k, not their last, than the mean of "
    "those that have it, the share whose advantage there has the opposite sign.",
    "outcome/zero_variance": "Share of the groups whose rollouts all earned the same in their last turn.",
    "outcome/failed": "Share of the requested rollouts that raised an error.",
    "tool/latency_s/p50": "Median over the rollouts with a tool call of their longest call, in seconds.",
    "tool/latency_s/p95": "95th percentile of the same.",
    "tool/latency_s/max": "Maximum of the same.",
    "critic/turn_explained_variance": "1 - Var(target - V) / Var(target) at the first tokens of turns: 1 is a perfect "
    "critic, 0 no better than the mean.",
    "critic/td_error": "Root mean square of what Q learns, R + gamma V of the next turn, minus Q, over the turns. "
    "With a critic of states and turns (`turn_td`, `archer`), like the next six.",
    "critic/v_explained_variance": "1 - Var(G - V) / Var(G) at the beginnings of turns, with G what the turn and those "
    "after it earned.",
    "critic/q_explained_variance": "The same of Q, at the ends of turns.",
    "critic/memory_rollouts": "Rollouts of earlier steps that the critic keeps.",
    "critic/memory_replayed": "Of these, the number learned again per round.",
    "critic/memory_age": "Mean number of steps since they were sampled.",
    "critic/memory_td_error": "`critic/td_error` of these.",
    "discriminator/expert": "Mean probability that the discriminator gives to an expert's turns of being an expert's.",
    "discriminator/own": "The same of the policy's own turns, where these two differ.",
    "discriminator/accuracy": "Share of both that it takes for what they are, before its update; 0.5 is a guess.",
    "rollouts_total/asked": "Rollouts requested for the step: the sum of the next six.",
    "rollouts_total/trained": "Rollouts in the update.",
    "rollouts_total/dropped": "Rollouts that the reward manager dropped.",
    "rollouts_total/alone": "Rollouts left out because they were the only one left of their group.",
    "rollouts_total/failed": "Rollouts that raised an error.",
    "rollouts_total/filtered": "Rollouts of the groups that verl took out: filtered, too old, or failed and replaced.",
    "rollouts_total/short": "Leaves that trees did not grow to, because rollouts ended before they could branch.",
    "rollouts_total/repeated": "Rollouts lost with their worker and generated again; `asked` counts them once.",
    "branch/per_prompt": "Leaves of a tree: rollouts of a prompt, dropped ones included.",
    "branch/shortfall": "Leaves that a tree was to have and did not grow to.",
    "branch/generated_tokens": "Tokens generated for a tree, shared ones once.",
    "branch/saved_tokens": "Share of the generated tokens in a tree's rows that were not generated again, because they "
    "are a branch's copy.",
    "branch/depth": "Number of the turn at which branches begin, on average; undefined without a branch.",
    "branch/fired": "Share of the states that might have branched that were to.",
    "branch/signal_mean": "What was measured at these states: `arpo`: surprisal after a tool result minus that of the "
    "first turn, `at2po`: surprisal of a turn, both in nats.",
    "forest/nodes": "Distinct turns of the step; one that rollouts share counts once. With estimators on trees.",
    "forest/shared_fraction": "Share of the generated tokens of all rollouts in turns that more than one of them has.",
    "forest/with_siblings": "Share of the distinct turns after the first that have a sibling.",
    "forest/sibling_std": "Mean over states with several turns of the standard deviation of what these led to.",
    "guard/turn_rewarded": "Share of the rollouts that earned something before their last turn.",
    "guard/paid": "Mean over the rollouts of all that they earned, turn rewards and outcome.",
    "guard/zero_variance_groups": "Share of the groups whose rollouts all earned the same at every turn.",
    "guard/bad_advantage_tokens": "Generated tokens whose advantage is NaN or infinite.",
    "guard/masked_advantage_tokens": "Tokens that the model did not generate and that have an advantage.",
    "guard/turn_rewards": "1 while this guard fires: nothing is earned before the last turn although turns are paid.",
    "guard/zero_variance": "1 while this guard fires: too many groups have nothing to learn from.",
    "guard/tool_failures": "1 while this guard fires: too many tool calls fail.",
    "guard/tool_use": "1 while this guard fires: too few rollouts use a tool, or far fewer than at the best step.",
    "guard/outcome": "1 while this guard fires: the outcome has fallen far below its best, while the rest of what is "
    "paid has risen.",
    "guard/bad_advantages": "1 while this guard fires: an advantage is NaN or infinite.",
    "guard/masked_advantages": "1 while this guard fires: a token that the model did not generate has an advantage.",
}
"""Numbers of a training step."""

COMPONENT_METRICS = {
    "tool/hit": "1 if an accepted answer is in a result that the model saw; undefined for yes/no questions.",
    "tool/hit_undefined": "1 for a question whose accepted answers no result can prove, such as yes or no.",
    "tool/calls_succeeded": "Share of the tool calls that succeeded and whose result the model saw; undefined without "
    "a call (`tool_use`, like the next four).",
    "tool/calls_changed": "Share of the tool calls that changed something: the tool says so or, if it says nothing, "
    "the model had not read this result before.",
    "tool/calls_used": "Share of the tool calls whose result brought a word of the answer into the rollout; undefined "
    "without a call, and for an answer such as yes or no.",
    "tool/calls_repeated": "Tool calls that repeat an earlier one of the rollout.",
    "tool/calls_cost": "What repeated calls and calls cost the rollout: prices times their numbers.",
    "outcome/em": "1 if the answer matches an accepted one exactly (normal form: the preset's).",
    "outcome/contains": "1 if an accepted answer occurs in the answer.",
    "outcome/f1": "Word overlap of the answer with the best accepted one, SQuAD's F1.",
    "outcome/format": "Share of well-formed turns; `paper_v1` in `mtgrpo_xml`: the score of the paper's code.",
    "outcome/tags": "The tag score of the paper's code (`paper_v1` in `mtgrpo_xml`).",
    "outcome/well_formed": "1 if the last turn is a well-formed answer (`paper_v2`).",
    "outcome/valid_sequence": "1 if the whole response is valid to Search-R1's code (`search_r1_*`).",
    "outcome/judge": "The judge's outcome score.",
    "outcome/score": "What `compute_score` returned (`reward.turn.outcome=compute_score`).",
    "env/return": "Sum of the rewards of all steps (`env`).",
    "env/done": "1 if the environment ended the episode (`env`).",
    "env/<name>": "The last value of a number in the environment's `info`; `env/outcome` is the outcome (`env`).",
    "judge/turn_score": "Mean score that the judge gave to turns; undefined if it scored none.",
    "judge/requests": "Requests to the judge for this rollout.",
    "judge/cached": "Scores taken from the cache instead.",
    "judge/repaired": "Replies that could be read only at the second try.",
    "judge/shortened": "1 if tool results were cut because the rollout is longer than the judge's context.",
    "judge/tokens": "Tokens that the judge's requests and replies took.",
    "judge/cost_usd": "Dollars that they cost at the judge's prices; undefined without prices, or if the server does "
    "not count the tokens.",
}
"""Numbers of each rollout that depend on the reward function: the components of the packaged ones."""

_RESERVED = (
    # families of names, some of them not used yet
    r"(guard|rollouts_total|branch|forest)/.*|tool/latency_s/.*",
    # other keys of verl's reward_extra_info
    r"uid|data_source|question_id|dropped_reason|turn_rewards|turn_dense|turn_notes|transcript|turn_pattern|node_path",
    r"role|output_id|fed_by|conversation|learnt|answering",
    # verl's own columns of a dump, and its name for the sum of a rollout's rewards
    r"input|output|gts|score|step|reward",
)


def _pattern(name: str) -> str:
    """Return a regular expression for the names that a documented one covers."""
    return re.sub(r"<\w+>", ".*", name.replace("<k>", r"\d+"))


_OWN = re.compile(
    "|".join([*map(_pattern, [*ROLLOUT_METRICS, *DECIDE_METRICS, *ROLE_METRICS, *STEP_METRICS]), *_RESERVED])
)


def own_metrics(names: Iterable[str]) -> list[str]:
    """Return those of the names that this package uses itself.

    A component of a reward function with such a name would replace our number, which guards, reports and the update
    itself read.
    """
    return [name for name in names if _OWN.fullmatch(name)]
