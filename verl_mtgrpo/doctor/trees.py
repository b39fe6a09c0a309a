"""Check that a run that is to grow trees of rollouts grows them, and that its estimator is there for trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_mtgrpo.config import of_group
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import ROLLOUT, Setup
from verl_mtgrpo.integration.growth import widths_of
from verl_mtgrpo.integration.settings import BranchSettings
from verl_mtgrpo.integration.trees import TREE_LOOPS, branch_settings, check_trees, grows, takes_leaves
from verl_mtgrpo.launch.command import hydra_value

_BRANCH = "trainer.turn.branch"
ON_CHAINS = {
    "mt_grpo_tree": "mt_grpo",
    "turn_rloo_tree": "turn_rloo",
    "turn_gae_tree": "turn_gae with the first turns of a prompt compared with each other",
    "arpo": "verl's grpo",
    "tree_grpo": "verl's grpo",
    "at2po": "verl's grpo with the standard deviation of N rollouts instead of N - 1",
}
"""Estimators on trees -> what they are, with their default settings, where rollouts share no turn."""
READS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "full": ("width", "turns"),
    "arpo": ("width", "initial", "probability", "weight", "decide", "threshold", "tokens", "seed"),
    "at2po": ("initial", "rounds", "sibling_penalty"),
    "random": ("initial", "rounds", "seed"),
}
"""``trainer.turn.branch.grow`` -> the other keys of ``trainer.turn.branch`` that it reads."""


def trees(setup: Setup) -> Iterator[Finding]:
    """Yield what does not fit, and how trees grow; nothing in a run without any of it."""
    yield from _chains_only(setup)
    yield from _unread(setup)
    if not grows(setup.config):
        check_trees(setup.config)  # trees that are asked for without a loop that grows them
        return
    problems = [*_one_leaf(setup), *_no_budget(setup), *_never(setup), *_first_turn_only(setup)]
    yield from problems
    check_trees(setup.config)
    if not problems:
        yield _line(setup)


def _chains_only(setup: Setup) -> Iterator[Finding]:
    """Warn of an estimator on trees in a run that grows none."""
    name = str(setup.get("algorithm.adv_estimator"))
    settings = branch_settings(setup.config)
    if not takes_leaves(name) or settings.grow != "none":
        return
    loop = setup.get(f"{ROLLOUT}.agent.default_agent_loop")
    if loop not in TREE_LOOPS and not str(loop).startswith("mtgrpo_"):
        return  # a loop of the user's own, which may write node_path itself
    what = f": {name} is {ON_CHAINS[name]} there, with its default settings" if name in ON_CHAINS else ""
    message = f"algorithm.adv_estimator={name} compares rollouts that share turns, but {_BRANCH}.grow=none: "
    message += f"no rollout shares a turn{what}"
    fix = f"set {_BRANCH}.grow (and {ROLLOUT}.agent.default_agent_loop={TREE_LOOPS[0]}), as the groups +mtgrpo=... "
    yield Finding("trees", "warn", message, f"{fix}of estimators on trees do, or choose an estimator for chains")


def _unread(setup: Setup) -> Iterator[Finding]:
    """Warn of settings of growing that this way of growing does not read."""
    settings, group = branch_settings(setup.config), setup.get("trainer.turn.preset")
    read = {*READS[settings.grow], "grow"}
    for key, field in BranchSettings.model_fields.items():
        value: Any = getattr(settings, key)
        if key not in read and value not in (field.default, of_group(group, f"{_BRANCH}.{key}")):
            # What the group itself sets, nobody asked for who chose another way of growing.
            readers = ", ".join(grow for grow, keys in READS.items() if key in keys)
            message = f"{_BRANCH}.{key}={value} is not read with {_BRANCH}.grow={settings.grow}"
            fix = f"leave it at {hydra_value(field.default)}, or set grow to one of {readers}"
            yield Finding("trees", "warn", message, fix)
    if settings.grow == "arpo" and settings.decide == "coin" and settings.threshold != 0.5:
        message = f"{_BRANCH}.threshold={settings.threshold} is not read with {_BRANCH}.decide=coin"
        yield Finding("trees", "warn", message, f"leave it at 0.5, or set {_BRANCH}.decide=threshold")


def _one_leaf(setup: Setup) -> Iterator[Finding]:
    """Refuse trees of one leaf."""
    n = setup.get(f"{ROLLOUT}.n")
    if n == 1:
        message = f"{ROLLOUT}.n=1 is the number of leaves of each tree, and a tree of one leaf does not branch"
        yield Finding("trees", "fail", message, f"set {ROLLOUT}.n to 4 or more, or {_BRANCH}.grow=none")


def _no_budget(setup: Setup) -> Iterator[Finding]:
    """Warn if as many rollouts begin at the prompt as a tree has leaves."""
    settings, n = branch_settings(setup.config), setup.get(f"{ROLLOUT}.n")
    if "initial" in READS[settings.grow] and n != 1 and settings.initial == n:
        message = f"{_BRANCH}.initial={n} rollouts begin at the prompt and {ROLLOUT}.n={n}: no branch is left to grow"
        yield Finding("trees", "warn", message, f"set {_BRANCH}.initial to less, such as {n // 2}")


def _never(setup: Setup) -> Iterator[Finding]:
    """Warn if ``arpo`` branches with probability 0 whatever it measures."""
    settings = branch_settings(setup.config)
    least = settings.threshold if settings.decide == "threshold" else 0.0
    if settings.grow == "arpo" and settings.weight == 0 and settings.probability <= least:
        message = f"{_BRANCH}.probability={settings.probability} with {_BRANCH}.weight=0.0 never branches"
        yield Finding("trees", "warn", message, "set probability=0.5 and weight=0.2 (ARPO's), or grow=none")


def _first_turn_only(setup: Setup) -> Iterator[Finding]:
    """Warn of a full tree whose number of leaves has one factor only: what it grows are chains."""
    settings, n = branch_settings(setup.config), setup.get(f"{ROLLOUT}.n")
    if settings.grow != "full" or settings.width is not None or n == 1:
        return
    widths = widths_of(settings, n, setup.get(f"{ROLLOUT}.multi_turn.max_assistant_turns") or 0)
    if len(widths) > 1 and widths[1] == 1:
        message = (
            f"{ROLLOUT}.n={n} is no product of two numbers: of the {len(widths)} turns that {_BRANCH}.grow=full is "
        )
        message += "to branch, only the first one does, and no rollouts share a turn"
        product = max(4, n + 1)
        yield Finding(
            "trees", "warn", message, f"set {ROLLOUT}.n to a product, such as {product}, or {_BRANCH}.turns=1"
        )


def _line(setup: Setup) -> Finding:
    settings, n = branch_settings(setup.config), setup.get(f"{ROLLOUT}.n")
    begin = ""
    if "initial" in READS[settings.grow]:
        begin = f", {settings.initial or max(1, n // 2)} of them begun at the prompt"
    name = setup.get("algorithm.adv_estimator")
    validation = setup.get(f"{ROLLOUT}.val_kwargs.n") or 1
    rollouts = "rollout" if validation == 1 else "rollouts"
    message = f"{n} leaves per prompt for {name}, grown by {settings.grow}{begin}; "
    return Finding("trees", "ok", f"{message}a validation grows none: {validation} {rollouts} per prompt")
