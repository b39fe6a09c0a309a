"""Decide which overrides turn a verl recipe into one of our presets, and what only its owner can decide.

A value on the command line wins over a config group. So the group is named once, and each setting without which it
would not be the preset is named again if the recipe sets it too; every other setting of the recipe stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from verl_mtgrpo.config import packaged
from verl_mtgrpo.doctor.compose import parse
from verl_mtgrpo.init.recipe import Recipe, Setting
from verl_mtgrpo.init.shell import PASSED_ON
from verl_mtgrpo.init.tools import key_of, tool_names
from verl_mtgrpo.integration.agent_names import TOOL_AGENT, VERLS_LOOPS, verls_loops_in, without_agent_names

ROLLOUT = "actor_rollout_ref.rollout"
LOOP, TURNS = f"{ROLLOUT}.agent.default_agent_loop", f"{ROLLOUT}.multi_turn"
ESTIMATOR, MANAGER, MODE = "algorithm.adv_estimator", "reward.reward_manager.name", "trainer.v1.trainer_mode"
SCORE, EXPERIMENT = "reward.custom_reward_function.path", "trainer.experiment_name"
TOOL_FILES = (f"{TURNS}.function_tool_path", f"{TURNS}.tool_config_path")
FUNCTION = "turn_rewards"
"""The function that is written, and its file without ``.py``."""
_OURS = "mtgrpo_"
_NEEDED = (ESTIMATOR, LOOP, MANAGER, MODE, f"{TURNS}.enable", "critic.enable", "reward.turn.pay")
"""What the presets cannot do without."""


@dataclass(frozen=True)
class Override:
    """One override, and why it is there."""

    text: str
    why: str


@dataclass(frozen=True)
class Tools:
    """The tools of the agent.

    Attributes:
        names: Their names, empty if none were found.
        file: The file they are in; None without one.
        given: True if the user named the file, not the recipe.
    """

    names: tuple[str, ...] = ()
    file: Path | None = None
    given: bool = False


@dataclass(frozen=True)
class Switch:
    """How to switch a recipe.

    Attributes:
        overrides: What is added to its command; ``$HERE`` is the folder that is written.
        keeps_score: True if the outcome still comes from verl's reward function.
        open: What could not be decided here.
    """

    overrides: tuple[Override, ...]
    keeps_score: bool
    open: tuple[str, ...]


def find_tools(recipe: Recipe, given: Path | None) -> tuple[Tools, list[str]]:
    """Return the tools, of the user's file or of the one that the recipe names, and what is left open."""
    if given is not None:
        names = tool_names(given)
        left = [] if names else [f"{given} declares no tool (verl's @function_tool, or a YAML with tools:)"]
        return Tools(tuple(names), given.resolve(), given=True), left
    for key in TOOL_FILES:
        setting = recipe.settings.get(key)
        if setting is None or setting.value in ("null", ""):
            continue
        path = Path(setting.value)
        if setting.known and path.is_file():
            return Tools(tuple(tool_names(path)), path.resolve()), []
        return Tools(), [f"{key}={setting.value} is not a file here, so its tools are not known: name it by --tools"]
    return Tools(), []


def decide(recipe: Recipe, preset: str, tools: Tools) -> Switch:
    """Return what is added to the recipe's command."""
    line = parse([word.text for word in recipe.arguments if word.text != PASSED_ON])
    overrides, left = [_REWARDS, *_tool_file(recipe, tools)], list(_unread(recipe))
    model = recipe.settings.get("reward.reward_model.enable")
    if line.names_group:
        left.append(
            "the command names a config group +mtgrpo=... itself: choose the method there. Only the turn rewards are "
            "added here"
        )
        score = recipe.settings.get("reward.turn.outcome")
        return Switch(tuple(overrides), score is not None and score.value == "compute_score", tuple(left))
    overrides = [Override(f"+mtgrpo={preset}", _WHAT_A_GROUP_IS), *_again(recipe, preset), *overrides]
    keeps = model is None or model.value.lower() != "true"
    if keeps and SCORE not in recipe.settings:
        overrides.append(
            Override(
                "reward.turn.outcome=compute_score", "as before, verl's reward function for the data_source scores"
            )
        )
    overrides += _own_folder(recipe, preset)
    left += [
        *_of_the_loop(recipe, tools),
        *_of_the_questions(recipe, preset),
        *_kept(recipe, preset),
        *_of_training(recipe, preset),
    ]
    return Switch(tuple(overrides), keeps, tuple(left))


_WHAT_A_GROUP_IS = "the method with its agent loop, reward manager and trainer (docs/how-it-plugs-in.md)"
_REWARDS = Override(f"reward.turn.preset=$HERE/{FUNCTION}.py:{FUNCTION}", "what each turn earns: change it there")


def _again(recipe: Recipe, preset: str) -> Iterator[Override]:
    """Yield what the recipe sets and the preset needs otherwise."""
    group = packaged(preset)
    for key in _NEEDED:
        setting, wanted = recipe.settings.get(key), OmegaConf.select(group, key)
        if key == "critic.enable" and wanted is None and setting:
            wanted = OmegaConf.select(group, ESTIMATOR) == "gae"
        if setting is None or wanted is None or setting.value.lower() == str(wanted).lower():
            continue
        if key == LOOP and setting.known and setting.value not in VERLS_LOOPS:
            continue
        if key == MODE:
            if setting.value.startswith(_OURS):
                continue
            wanted = f"{_OURS}{setting.value}" if setting.known else wanted
        yield Override(f"{key}={wanted}", f"the command says {setting.value}{_where(setting)}, and wins over the group")
    if (old := recipe.settings.get("trainer.use_v1")) and old.value.lower() != "true":
        yield Override("trainer.use_v1=True", "verl's old trainer pays everything on the last token")


def _tool_file(recipe: Recipe, tools: Tools) -> Iterator[Override]:
    """Yield the user's file of tools if the recipe does not name it."""
    if not tools.file or not tools.given:
        return
    key = key_of(tools.file)
    setting = recipe.settings.get(key)
    if setting is None or Path(setting.value).resolve() != tools.file:
        yield Override(f"{key}={tools.file}", "the tools that you named")


def _own_folder(recipe: Recipe, preset: str) -> Iterator[Override]:
    """Yield a name of its own for the run, or verl would continue from the checkpoints of the old one."""
    name = recipe.settings.get(EXPERIMENT)
    if name is None and "trainer.save_freq" not in recipe.settings:
        return
    known = name is not None and name.known and "$" not in name.value
    text = f"{name.value}_{preset}" if name and known else preset
    yield Override(f"{EXPERIMENT}={text}", "a folder of its own, or verl continues from checkpoints of the old run")


# ---- what is left open


def _unread(recipe: Recipe) -> Iterator[str]:
    parts: dict[str, list[str]] = {}
    for word in recipe.unread:
        for part in word.unknown:
            parts.setdefault(part, []).append(word.text)
    for part, words in parts.items():
        where = f" (line {next(one.line for one in recipe.unread if part in one.unknown)})" if recipe.script else ""
        yield f"{_one_line(part)}{where} was not worked out; your script passes it on as ever, in {_several(words)}"
    if _hides_settings(recipe):
        yield (
            "what stands alone among these may hold settings that are not known here; more may have to be set again: "
            "`mtgrpo doctor` reads the command as verl gets it"
        )
    maybe = [word for word in recipe.arguments if word.maybe and not word.unknown]
    if maybe:
        lines = sorted({word.line for word in maybe})
        yield (
            f"lines {_several([str(one) for one in lines])} depend on a condition, which was not worked out; your "
            "script passes them on as ever"
        )


def _hides_settings(recipe: Recipe) -> bool:
    """Return True if a word of the command could not be read at all, so that any setting may be in it."""
    return any(any(word.text.startswith(part) for part in word.unknown) for word in recipe.unread)


def _of_the_loop(recipe: Recipe, tools: Tools) -> Iterator[str]:
    loop = recipe.settings.get(LOOP)
    if loop and loop.known and loop.value not in VERLS_LOOPS and not loop.value.startswith(_OURS):
        yield (
            f"{loop.value} is an agent loop of your own ({LOOP}{_where(loop)}): it does not record turns. Use "
            "mtgrpo_tool_agent if your tools are verl's tools; it stays as it is here, and the start refuses it"
        )
    elif f"{ROLLOUT}.agent.agent_loop_config_path" in recipe.settings:
        yield "agent_loop_config_path names agent loops of your own: the questions must not choose them (agent_name)"
    if not tools.names and not any(key in recipe.settings for key in TOOL_FILES) and not _hides_settings(recipe):
        yield (
            "no tools were found: the group's search tool is used, whose index is the environment variable "
            "MTGRPO_INDEX. With tools of your own, name their file by --tools"
        )


def _of_the_questions(recipe: Recipe, preset: str) -> Iterator[str]:
    """Yield the question files whose rows name an agent loop of verl's, and what becomes of them."""
    meant = _meant_by_tool_agent(recipe, preset)
    for key in ("data.train_files", "data.val_files"):
        setting = recipe.settings.get(key)
        listed = setting.value.strip("[]").split(",") if setting and setting.known else []
        for path in (Path(one.strip(" '\"")).expanduser() for one in listed):
            loops = verls_loops_in(path) if path.suffix == ".parquet" and path.is_file() else []
            if meant and loops == [TOOL_AGENT]:
                yield (
                    f"{key}: rows of {path} name verl's {TOOL_AGENT} (column agent_name): in this run it means "
                    f"{meant}, so the file can stay as it is"
                )
            elif loops:
                yield (
                    f"{key}: rows of {path} name the agent loop {', '.join(loops)} (column agent_name), and verl would "
                    f"take it; the start refuses them. Use a copy without the column: {without_agent_names(path)}"
                )


def _meant_by_tool_agent(recipe: Recipe, preset: str) -> str:
    """Return the loop that takes rows with verl's tool agent (``integration.row_loops``), or nothing if none may."""
    loop = recipe.settings.get(LOOP)
    if f"{ROLLOUT}.agent.agent_loop_config_path" in recipe.settings:
        return ""
    if loop is None or not loop.known or loop.value in VERLS_LOOPS:
        return str(OmegaConf.select(packaged(preset), LOOP))
    return loop.value if loop.value.startswith(_OURS) else ""


def _kept(recipe: Recipe, preset: str) -> Iterator[str]:
    """Yield the recipe's values that stay although the preset has other ones."""
    group = packaged(preset)
    for key, setting in recipe.settings.items():
        wanted = OmegaConf.select(group, key, throw_on_resolution_failure=False)
        leaf = wanted is not None and not OmegaConf.is_config(wanted)
        if leaf and key not in (*_NEEDED, *TOOL_FILES) and str(wanted).lower() != setting.value.lower():
            yield f"{key}={setting.value}{_where(setting)} stays; the group has {wanted}"
    manager = recipe.settings.get(MANAGER)
    if manager and manager.value not in ("naive", "mtgrpo"):
        yield f"the reward manager {manager.value} is replaced, and with it what it adds (such as penalties for length)"


def _of_training(recipe: Recipe, preset: str) -> Iterator[str]:
    from verl_mtgrpo.integration.advantage.comparing import compares

    settings = recipe.settings
    estimator = str(OmegaConf.select(packaged(preset), ESTIMATOR))
    n = settings.get(f"{ROLLOUT}.n")
    if compares(estimator) and (n.value == "1" if n else not _hides_settings(recipe)):
        yield f"{ROLLOUT}.n is 1: {preset} compares the rollouts of a question, so set it to 4 or more"
    kl = settings.get("algorithm.use_kl_in_reward")
    if kl and kl.value.lower() == "true" and compares(estimator):
        yield "algorithm.use_kl_in_reward=True does not go with group statistics: docs/how-it-plugs-in.md"
    folder = settings.get("trainer.default_local_dir")
    if folder and "experiment_name" not in folder.value:
        yield f"checkpoints still go to {folder.value}: name another folder, or verl continues from what is there"
    model = settings.get("reward.reward_model.enable")
    if model and model.value.lower() == "true":
        yield "a reward model scores this recipe: say how it should pay (docs/rewards.md#a-language-model-as-judge)"
    if any("megatron" in word.text for word in recipe.arguments):
        yield "the run is on Megatron: every group composes with it, and `mtgrpo doctor --try-step` tries it on FSDP2"


def _where(setting: Setting) -> str:
    return f" (line {setting.word.line})" if setting.word.line else ""


def _several(words: Sequence[str]) -> str:
    shown = ", ".join(map(_one_line, words[:4]))
    return f"{shown} and {len(words) - 4} more" if len(words) > 4 else shown


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"
