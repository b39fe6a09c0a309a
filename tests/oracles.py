"""Estimators once more, as slow loops written from the papers' definitions, to test the fast ones against.

Nothing here uses the package: rows are Python lists, statistics are sums and roots written out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from fractions import Fraction
from typing import Any


def runs_of_ones(mask: list[int]) -> list[list[int]]:
    """Token positions of each turn of one row."""
    turns: list[list[int]] = []
    previous = 0
    for position, value in enumerate(mask):
        if value == 1 and previous == 0:
            turns.append([])
        if value == 1:
            turns[-1].append(position)
        previous = value
    return turns


def norm(values: list[float], scale: str, epsilon: float) -> list[float]:
    """(x - mean) / (std_{N-1} + epsilon); one value: mean 0, std 1."""
    if len(values) == 1:
        mean, std = 0.0, 1.0
    else:
        mean = sum(values) / len(values)
        std = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
    return [(x - mean) / ((std + epsilon) if scale == "std" else 1.0) for x in values]


def mt_grpo(
    rewards: list[list[float]],
    masks: list[list[int]],
    groups: list,
    *,
    c: float = 1.0,
    alpha: float = 1.0,
    missing_turn: str = "zero",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """K-turn MT-GRPO, turn by turn and row by row."""
    rows = range(len(masks))
    turns = [runs_of_ones(mask) for mask in masks]
    paid = [[sum(rewards[i][t] for t in turn) for turn in turns[i]] for i in rows]
    last_turn = [len(turn) for turn in turns]  # K_i, turns counted from 1
    advantages = [[0.0] * len(mask) for mask in masks]
    for group in set(groups):
        members = [i for i in rows if groups[i] == group and last_turn[i] > 0]
        if not members:
            continue
        outcome = dict(zip(members, norm([paid[i][-1] for i in members], scale, epsilon), strict=True))
        intermediate: dict[tuple[int, int], float] = {}
        for k in range(1, max(last_turn[i] for i in members) + 1):
            if missing_turn == "zero":
                taking_part = [i for i in members if last_turn[i] >= k]
            else:
                taking_part = [i for i in members if last_turn[i] > k]
            if taking_part:
                values = [paid[i][k - 1] if k < last_turn[i] else 0.0 for i in taking_part]
                for i, value in zip(taking_part, norm(values, scale, epsilon), strict=True):
                    intermediate[i, k] = value
        for i in members:
            for k in range(1, last_turn[i] + 1):
                turn_term = sum(alpha ** (m - k) * intermediate.get((i, m), 0.0) for m in range(k, last_turn[i] + 1))
                value = c * turn_term + alpha ** (last_turn[i] - k) * outcome[i]
                for t in turns[i][k - 1]:
                    advantages[i][t] = value
    return advantages


def _groups(groups: list, turns: list[list[list[int]]]) -> list[list[int]]:
    """Rows of each group that have a turn."""
    members = ([i for i in range(len(groups)) if groups[i] == g and turns[i]] for g in set(groups))
    return [group for group in members if group]


def _read(rewards: list[list[float]], masks: list[list[int]]) -> tuple[list, list]:
    turns = [runs_of_ones(mask) for mask in masks]
    return turns, [[sum(rewards[i][t] for t in turn) for turn in turns[i]] for i in range(len(masks))]


def _return_to_go(paid: list[float], k: int, gamma: float) -> float:
    return sum(gamma ** (m - k) * paid[m] for m in range(k, len(paid)))


def mt_grpo_v1(
    rewards: list[list[float]], masks: list[list[int]], groups: list, *, c: float = 1.0, epsilon: float = 1e-4
) -> list[list[float]]:
    """Two-turn MT-GRPO with the reference code's rule for rollouts without a tool call."""
    turns, paid = _read(rewards, masks)
    advantages = [[0.0] * len(mask) for mask in masks]
    for members in _groups(groups, turns):
        turn_reward = [sum(paid[i][:-1]) for i in members]
        outcome = [paid[i][-1] for i in members]
        a_turn, a_outcome = norm(turn_reward, "std", epsilon), norm(outcome, "std", epsilon)
        a_total = norm([x + y for x, y in zip(turn_reward, outcome, strict=True)], "std", epsilon)
        for n, i in enumerate(members):
            for k, tokens in enumerate(turns[i]):
                if len(turns[i]) == 1:
                    value = a_total[n]
                elif k == 0:
                    value = a_outcome[n] + c * a_turn[n]
                else:
                    value = a_outcome[n]
                for t in tokens:
                    advantages[i][t] = value
    return advantages


def turn_rloo(
    rewards: list[list[float]], masks: list[list[int]], groups: list, *, gamma: float = 1.0
) -> list[list[float]]:
    """Return-to-go minus the mean of the others alive at the turn, else of their last rewards, else nothing."""
    turns, paid = _read(rewards, masks)
    advantages = [[0.0] * len(mask) for mask in masks]
    for members in _groups(groups, turns):
        for i in members:
            others = [j for j in members if j != i]
            for k, tokens in enumerate(turns[i]):
                alive = [_return_to_go(paid[j], k, gamma) for j in others if len(turns[j]) > k]
                last = [paid[j][-1] for j in others]
                compare = alive or last
                baseline = sum(compare) / len(compare) if compare else 0.0
                for t in tokens:
                    advantages[i][t] = _return_to_go(paid[i], k, gamma) - baseline
    return advantages


def gtpo(
    rewards: list[list[float]],
    masks: list[list[int]],
    groups: list,
    *,
    gamma: float = 1.0,
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """Return-to-go normalised over every turn of the group (arXiv 2511.14846)."""
    turns, paid = _read(rewards, masks)
    advantages = [[0.0] * len(mask) for mask in masks]
    for members in _groups(groups, turns):
        places = [(i, k) for i in members for k in range(len(turns[i]))]
        values = norm([_return_to_go(paid[i], k, gamma) for i, k in places], "std", epsilon) if places else []
        for (i, k), value in zip(places, values, strict=True):
            for t in turns[i][k]:
                advantages[i][t] = value
    return advantages


def turn_reinforce_pp(
    rewards: list[list[float]], masks: list[list[int]], groups: list, *, gamma: float = 1.0
) -> list[list[float]]:
    """Return-to-go on every token, whitened over all generated tokens; one token only centres to 0."""
    turns, paid = _read(rewards, masks)
    tokens = [
        (i, t, _return_to_go(paid[i], k, gamma))
        for i in range(len(masks))
        for k, turn in enumerate(turns[i])
        for t in turn
    ]
    advantages = [[0.0] * len(mask) for mask in masks]
    if len(tokens) < 2:
        return advantages
    mean = sum(value for _, _, value in tokens) / len(tokens)
    variance = sum((value - mean) ** 2 for _, _, value in tokens) / (len(tokens) - 1)
    for i, t, value in tokens:
        advantages[i][t] = (value - mean) / math.sqrt(variance + 1e-8)
    return advantages


def turn_gae(
    rewards: list[list[float]],
    masks: list[list[int]],
    values: list[list[float]],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[list[list[float]], list[list[float]]]:
    """GAE over turns, not whitened: every turn is one step, V is read where its first token is chosen.

    A critic learns the λ-return of a step, A + V (Schulman et al., arXiv 1506.02438). Nothing is paid inside a step, so
    what is to come is the same at all of its tokens, and so is the target.
    """
    turns, paid = _read(rewards, masks)
    advantages, returns = [[0.0] * len(mask) for mask in masks], [[0.0] * len(mask) for mask in masks]
    for i in range(len(masks)):
        later, next_value = 0.0, 0.0
        for k in reversed(range(len(turns[i]))):
            value = values[i][turns[i][k][0]]
            later = paid[i][k] + gamma * next_value - value + gamma * lam * later
            next_value = value
            for t in turns[i][k]:
                advantages[i][t], returns[i][t] = later, later + value
    return advantages, returns


def turn_td(
    rewards: list[list[float]],
    masks: list[list[int]],
    before: list[list[float]],
    after: list[list[float]],
    *,
    gamma: float = 1.0,
    fresh: list[bool] | None = None,
) -> tuple[list[list[float]], list[dict[int, float]]]:
    """Return Q - V at each token, not whitened, and for each row what is learned after how many tokens.

    ArCHer, arXiv 2402.19446: Q(s, a) is pulled towards r + γ V(s'), V(s) towards Q(s, a) of a sampled a.
    """
    turns, paid = _read(rewards, masks)
    advantages: list[list[float]] = []
    targets: list[dict[int, float]] = []
    for i, mask in enumerate(masks):
        row, learned = [0.0] * len(mask), {}
        for k, tokens in enumerate(turns[i]):
            state, taken = before[i][tokens[0]], after[i][tokens[-1]]
            follows = k + 1 < len(turns[i])
            learned[tokens[-1] + 1] = paid[i][k] + (gamma * before[i][turns[i][k + 1][0]] if follows else 0.0)
            if fresh is None or fresh[i]:
                learned[tokens[0]] = taken
            for t in tokens:
                row[t] = taken - state
        advantages.append(row)
        targets.append(learned)
    return advantages, targets


def bilevel_gae(
    rewards: list[list[float]],
    masks: list[list[int]],
    values: list[list[float]],
    *,
    gamma_turn: float = 1.0,
    gamma_token: float = 1.0,
    lam: float = 1.0,
) -> tuple[list[list[float]], list[list[float]]]:
    """RAGEN's two levels, not whitened: from the last turn to the first, and in each from the last token."""
    advantages, returns = [[0.0] * len(mask) for mask in masks], [[0.0] * len(mask) for mask in masks]
    for i, mask in enumerate(masks):
        later_turn, next_value, paid_before_next_end = 0.0, 0.0, 0.0
        for turn in reversed(runs_of_ones(mask)):
            end = turn[-1]
            to_come = rewards[i][end] + gamma_turn * (paid_before_next_end + next_value)
            later_turn = to_come - values[i][end] + gamma_turn * lam * later_turn
            later, following = later_turn, values[i][end]
            advantages[i][end], returns[i][end] = later, later + values[i][end]
            for t in reversed(turn[:-1]):
                later = rewards[i][t] + gamma_token * following - values[i][t] + gamma_token * lam * later
                following = values[i][t]
                advantages[i][t], returns[i][t] = later, later + values[i][t]
            next_value, paid_before_next_end = values[i][end], sum(rewards[i][t] for t in turn[:-1])
    return advantages, returns


# ---- SQuAD's answer comparison (Rajpurkar et al., arXiv 1606.05250), written out character by character


def sign_conflicts(paid: list[list[float]], advantages: list[list[float]], groups: list) -> dict[int, tuple[int, int]]:
    """Turn k from 1 -> how many rollouts' terms and advantages have opposite signs, and how many have a term.

    ``paid`` and ``advantages`` hold one number per turn. Terms are exact fractions: give numbers that floats can hold.
    """
    found: dict[int, tuple[int, int]] = {}
    for mine, credit, group in zip(paid, advantages, groups, strict=True):
        for k in range(len(mine) - 1):
            reached = [other for other, label in zip(paid, groups, strict=True) if label == group and len(other) > k]
            compared = [Fraction(other[k]) if len(other) > k + 1 else Fraction(0) for other in reached]
            term = Fraction(mine[k]) - sum(compared) / len(compared)
            if term:
                opposite, counted = found.get(k + 1, (0, 0))
                found[k + 1] = (opposite + (term > 0 > credit[k] or term < 0 < credit[k]), counted + 1)
    return found


def squad_normal_form(text: str) -> str:
    """Lower case; without ASCII punctuation; without the words a, an, the; white space as single spaces."""
    kept = ""
    for character in text.lower():
        if not (character.isascii() and character.isprintable() and not character.isalnum() and character != " "):
            kept += character
    words, word = "", ""
    for character in kept + " ":
        if character.isalnum() or character == "_":
            word += character
        else:
            words += (" " if word in ("a", "an", "the") else word) + character
            word = ""
    return " ".join(words.split())


def squad_em(prediction: str, gold: list[str]) -> bool:
    return any(squad_normal_form(prediction) == squad_normal_form(one) for one in gold)


def squad_f1(prediction: str, gold: list[str]) -> float:
    best = 0.0
    for one in gold:
        predicted, left = squad_normal_form(prediction).split(), squad_normal_form(one).split()
        total = len(left)
        same = 0
        for word in predicted:
            if word in left:
                left.remove(word)
                same += 1
        if same:
            precision, recall = same / len(predicted), same / total
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def naive_bm25(query: str, corpus: list[Any], k1: float = 1.2, b: float = 0.75) -> list[tuple[str, float]]:
    """Robertson's BM25 with the never-negative idf ln(1 + (N - n + 0.5)/(n + 0.5)), from the formula."""
    documents = {p.id: Counter(re.findall(r"[a-z0-9]+", f"{p.title} {p.text}".lower())) for p in corpus}
    lengths = {id: sum(words.values()) for id, words in documents.items()}
    mean = sum(lengths.values()) / len(lengths)
    scores: dict[str, float] = {}
    for word in re.findall(r"[a-z0-9]+", query.lower()):
        holders = [id for id, words in documents.items() if word in words]
        idf = math.log(1 + (len(documents) - len(holders) + 0.5) / (len(holders) + 0.5))
        for id in holders:
            tf = documents[id][word]
            norm = k1 * (1 - b + b * lengths[id] / mean)
            scores[id] = scores.get(id, 0.0) + idf * tf * (k1 + 1) / (tf + norm)
    return sorted(scores.items(), key=lambda item: -item[1])
