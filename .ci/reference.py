"""Write docs/reference.md, every setting with its meaning; docs/metrics.md, every metric; and comments in YAML files.

    python .ci/reference.py        (make reference)

Nothing is kept here. What one of our settings means is said once, below its field in the settings class, and the YAML
files get it as the comment above the key: they are what a user reads and copies. What a group sets of verl's, and the
knobs of the estimators, have their comments in the YAML files alone, because they say why a value is what it is. Verl's
own defaults come from verl, metrics from ``rewards/metric_names.py``.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGE, METRICS_PAGE = ROOT / "docs" / "reference.md", ROOT / "docs" / "metrics.md"
CONFIG = ROOT / "verl_mtgrpo" / "config"
KNOBS, OURS = "algorithm.turn.", ("algorithm.turn.", "reward.turn.", "trainer.turn.")
BASE_YAML, TOOL_YAML = CONFIG / "mtgrpo" / "_base.yaml", CONFIG / "tools" / "search_tool.yaml"
TOOL_KEYS = "tools.config."
NOT_IN_VERL = "–"

INTRODUCTION = """\
# Reference

<!-- Written by `make reference`. Change the YAML files, the signatures or the settings classes, and run it again. -->

Every setting of this package with its default; [every metric](metrics.md) has a page of its own. An unknown key below
`algorithm.turn`, `reward.turn`, `trainer.turn` or in the search tool's `config` is an error that lists the known ones.
"""
GROUPS = """\
`+mtgrpo=NAME` on verl's command line, or `mtgrpo=NAME` with the primary config `mtgrpo_trainer`. Groups with a critic
set `critic.enable=True`, and `critic.model.path` to the policy's unless you set it."""
PRIMARY = """\
`--config-path=pkg://verl_mtgrpo.config --config-name=mtgrpo_trainer` is verl's own primary config with one of these
groups. It fails at once where this package is not installed."""
RECORDS = """\
`algorithm.adv_estimator=NAME`. An estimator that compares rollouts needs `actor_rollout_ref.rollout.n` of 2 or more.
One that needs a further field runs only in this package's trainer modes."""
KNOBS_OF = """\
The keyword arguments of the estimator, under `algorithm.turn`. *By hand* is the default where
`algorithm.adv_estimator` is set without the group."""
SETTINGS = "Defaults with and without a config group. Where no group is used, put `+` in front of the key."
VERLS = "What the groups change in verl's own settings. A value on the command line wins over the group."
CPU = """\
`+mtgrpo_cpu=default` with the environment variable `VERL_PLATFORM=cpu`: everything verl needs to train without a GPU.
`+mtgrpo_cpu=vllm` is the same with real vLLM in place of the built-in rollout server."""
ENVIRONMENTS = """\
`+mtgrpo_env=default` after a group `+mtgrpo=NAME`: each turn of the model is a step in an
[environment](environments.md), and no tool is called."""
RECIPE = """\
`+mtgrpo_recipe=default`, beside a group `+mtgrpo=NAME`: what all [recipes](../recipes/README.md) share. It works in a
command of your own too, where anything can be overridden as ever."""
TOOL = """\
`tools[].config` of `verl_mtgrpo/config/tools/search_tool.yaml`. To change a value, copy the file and name the copy in
`actor_rollout_ref.rollout.multi_turn.tool_config_path`."""
METRICS = """\
# Metrics

<!-- Written by `make reference`. Change rewards/metric_names.py, and run it again. -->

Every number that this package logs, beside verl's own. [Dashboards](dashboards.md) shows them where you look.
`<k>` is the number of a turn, counted from 1.

Training logs all of them per step; a metric that is undefined for a rollout is averaged over the others. Validation
logs those of rollouts, as `val-aux/<data source>/<name>/mean@<n>`. In `trainer.v1.trainer_mode=sync`, which is verl's
own trainer, only validation logs any of them."""
KINDS = """\
`<kind>` of the model's own errors, or of your own tool's: {call}. `<kind>` of the search's: {service}. \
`<kind>` of an environment's: {environment}."""


@dataclass(frozen=True)
class Entry:
    """One key of a YAML file: its dotted name, its value as written, its comment, and its line, counted from 0."""

    key: str
    value: str
    comment: str
    line: int = field(default=-1, compare=False)


def read_yaml(path: Path) -> list[Entry]:
    """Return the keys of a YAML file that hold a value, in order."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode), path
    return list(_entries(text, root, "", {}))


def header(path: Path) -> str:
    """Return the comment at the top of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in comment if not line.startswith("# @"))


def _entries(text: str, node: yaml.MappingNode, prefix: str, seen: dict[int, str]) -> Iterator[Entry]:
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if value.start_mark.index < name.start_mark.index:  # an alias: the node stands where its anchor is
            end = text.index("*", name.end_mark.index)
            yield Entry(key, f"as {seen[id(value)]}", _comment(text, name, end))
            continue
        seen[id(value)] = key
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _entries(text, value, f"{key}.", seen)
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style:
            for item in value.value:
                if isinstance(item, yaml.MappingNode) and key != "defaults":
                    yield from _entries(text, item, f"{key}.", seen)
        else:
            start, end = value.start_mark.index, value.end_mark.index
            yield Entry(key, _as_written(text[start:end]), _comment(text, name, end), name.start_mark.line)


def _as_written(value: str) -> str:
    """Return a value as the file has it, without its anchor; floats in one form, whatever the file's."""
    value = re.sub(r"^&\w+ ", "", value).strip()
    try:
        number = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return as_yaml(number) if isinstance(number, float) else value


def _comment(text: str, name: yaml.Node, end: int) -> str:
    """Return the comment lines above a key, and the comment behind its value."""
    lines = text[: name.start_mark.index].splitlines()[: name.start_mark.line]
    above: list[str] = []
    while lines and lines[-1].lstrip().startswith("#"):
        above.insert(0, lines.pop().strip(" #"))
    if not lines:  # the file's header
        above = []
    behind = re.match(r"[^\n#]*#([^\n]*)", text[end:])
    return " ".join([*above, *([behind[1].strip()] if behind else [])])


def settings(cls: Any, prefix: str) -> list[Entry]:
    """Return the keys of a settings class, those of the classes inside it too, with defaults and descriptions."""
    found = []
    for name, one in cls.model_fields.items():
        if hasattr(one.annotation, "model_fields"):
            found += settings(one.annotation, f"{prefix}{name}.")
        else:
            text = " ".join((one.description or "").replace("``", "`").split())
            found.append(Entry(prefix + name, as_yaml(one.default), text))
    return found


def our_settings() -> dict[Path, list[Entry]]:
    """Return our settings, by the YAML file that has their defaults."""
    from verl_mtgrpo.integration.rollout.search_settings import SearchSettings
    from verl_mtgrpo.integration.settings import TrainerTurnSettings, TurnRewardSettings

    of_group = [*settings(TurnRewardSettings, "reward.turn."), *settings(TrainerTurnSettings, "trainer.turn.")]
    return {BASE_YAML: of_group, TOOL_YAML: settings(SearchSettings, TOOL_KEYS)}


def commented(path: Path, described: Iterable[Entry]) -> str:
    """Return a YAML file in which the comment above each described key is its description."""
    words = {entry.key: re.sub(r"`(\S+)`", r"\1", entry.comment) for entry in described}
    lines = path.read_text(encoding="utf-8").splitlines()
    for entry in reversed(read_yaml(path)):
        if entry.key in words:
            first = entry.line
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            mark = " " * (len(lines[entry.line]) - len(lines[entry.line].lstrip())) + "# "
            text = textwrap.wrap(words[entry.key], 120, initial_indent=mark, subsequent_indent=mark)
            lines[first : entry.line] = text
    return "\n".join(lines) + "\n"


def as_yaml(value: Any) -> str:
    """Return a default as the YAML files write it."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float) and "e" in repr(value):  # YAML 1.1 takes 1e-06 for text
        mantissa, exponent = repr(value).split("e")
        return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}e{int(exponent):+d}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return "…" if value else "{}"
    return "null" if value is None else str(value)


def verls_defaults() -> Any:
    """Return verl's own primary config."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def verls(config: Any, key: str) -> str:
    """Return verl's default of a key as it is written, references not resolved; a dash where verl does not know it."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    *folders, name = key.split(".")
    node = OmegaConf.select(config, ".".join(folders)) if folders else config
    if not isinstance(node, DictConfig) or name not in node:
        return NOT_IN_VERL
    try:
        value = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index, call-overload]
    except OmegaConfBaseException:
        return NOT_IN_VERL
    return as_yaml(value)


def cell(text: str) -> str:
    """Return text that stands in a cell of a Markdown table as it is."""
    parts = re.split(r"(`[^`]*`)", text)  # code stays as it is
    plain = [part if part.startswith("`") else part.replace("*", "\\*").replace("<", "&lt;") for part in parts]
    return "".join(plain).replace("|", "\\|") or " "


def code(text: str) -> str:
    """Return text as code in a cell of a Markdown table."""
    return f"`{text}`".replace("|", "\\|") if text not in ("", NOT_IN_VERL) else text


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def groups() -> dict[str, Path]:
    """Return the config groups by name."""
    return {path.stem: path for path in sorted((CONFIG / "mtgrpo").glob("[!_]*.yaml"))}


def whole(path: Path) -> dict[str, str]:
    """Return the keys and values of a config group, with those of the groups that it extends."""
    extended = re.findall(r"^  - ([a-z]\w*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    files = [*(path.with_name(f"{name}.yaml") for name in extended), path]
    return {entry.key: entry.value for file in files for entry in read_yaml(file)}


def groups_table() -> str:
    """Return what each config group is."""
    rows = []
    for name, path in groups().items():
        values = whole(path)
        critic = "yes" if "_critic" in path.read_text(encoding="utf-8") else "no"
        own = [values["algorithm.adv_estimator"], values["reward.turn.pay"]]
        rows.append([code(name), *map(code, own), critic, cell(header(path))])
    return table(["group", "`algorithm.adv_estimator`", "`reward.turn.pay`", "critic", "what it is"], rows)


def estimators_table() -> str:
    """Return what each estimator is, from its record."""
    from verl_mtgrpo.credit import ESTIMATORS

    rows = (
        [code(e.name), e.title, "yes" if e.compares_rollouts else "no", ", ".join(map(code, e.fields)), cell(e.words)]
        for e in ESTIMATORS.values()
    )
    return table(["estimator", "in tables", "compares rollouts", "needs", "its advantage"], rows)


def knobs_table() -> str:
    """Return the knobs of the estimators."""
    from verl_mtgrpo.credit import ESTIMATORS

    rows = []
    for name, path in groups().items():
        if name in ESTIMATORS:
            for entry in read_yaml(path):
                if entry.key.startswith(KNOBS):
                    by_hand = as_yaml(ESTIMATORS[name].knobs[entry.key.removeprefix(KNOBS)])
                    rows.append([code(name), *map(code, (entry.key, entry.value, by_hand)), cell(entry.comment)])
    return table(["estimator", "key", "in its group", "by hand", "meaning"], rows)


def settings_table() -> str:
    """Return the settings that do not depend on the estimator."""
    rows = ([code(e.key), code(e.value), cell(e.comment)] for e in our_settings()[BASE_YAML])
    return table(["key", "default", "meaning"], rows)


def verls_table(config: Any) -> str:
    """Return what the groups change of verl's settings: all of them, those with a critic, single ones."""
    shared = {"_base": "all", "_critic": "with a critic"}
    named = [(words, CONFIG / "mtgrpo" / f"{file}.yaml") for file, words in shared.items()]
    users: defaultdict[Entry, list[str]] = defaultdict(list)
    for words, path in [*named, *((f"`{name}`", path) for name, path in groups().items())]:
        for entry in read_yaml(path):
            if not entry.key.startswith(OURS) and entry.key != "algorithm.adv_estimator":
                users[entry].append(words)
    rows = [
        [code(e.key), ", ".join(who), code(e.value), code(verls(config, e.key)), cell(e.comment)]
        for e, who in users.items()
    ]
    return table(["key", "groups", "value", "verl's default", "meaning"], rows)


def group_table(config: Any, group: str, *names: str) -> str:
    """Return what configs of a group change of verl's settings."""
    rows = [
        [code(e.key), code(name), code(e.value), code(verls(config, e.key)), cell(e.comment)]
        for name in names
        for e in read_yaml(CONFIG / group / f"{name}.yaml")
    ]
    return table(["key", "group", "value", "verl's default", "meaning"], rows)


def tool_table() -> str:
    """Return the settings of the search tool."""
    values = {entry.key: entry.value for entry in read_yaml(TOOL_YAML)}
    rows = (
        [code(e.key.removeprefix(TOOL_KEYS)), code(values[e.key]), cell(e.comment)] for e in our_settings()[TOOL_YAML]
    )
    return table(["key", "default", "meaning"], rows)


def metrics_table(metrics: Mapping[str, str]) -> str:
    """Return metrics with what they say."""
    return table(["metric", "meaning"], ([code(name), cell(meaning)] for name, meaning in metrics.items()))


def reference() -> str:
    """Return the whole page."""
    config = verls_defaults()
    parts = [
        INTRODUCTION,
        *("## Config groups", GROUPS, groups_table(), PRIMARY),
        *("## Estimators", RECORDS, estimators_table()),
        *("## Knobs of the estimators", KNOBS_OF, knobs_table()),
        *("## Rewards, checks, guards and dumps", SETTINGS, settings_table()),
        *("## verl's settings in the groups", VERLS, verls_table(config)),
        *("## Training on a CPU", CPU, group_table(config, "mtgrpo_cpu", "default", "vllm")),
        *("## Environments", ENVIRONMENTS, group_table(config, "mtgrpo_env", "default")),
        *("## What the recipes share", RECIPE, group_table(config, "mtgrpo_recipe", "default")),
        *("## The search tool", TOOL, tool_table()),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def metrics_page() -> str:
    """Return the page of metrics."""
    from verl_mtgrpo.rewards.measures import CALL_ERRORS, ENVIRONMENT_ERRORS, SERVICE_ERRORS
    from verl_mtgrpo.rewards.metric_names import (
        COMPONENT_METRICS,
        DECIDE_METRICS,
        ROLE_METRICS,
        ROLLOUT_METRICS,
        STEP_METRICS,
    )

    listed = {"call": CALL_ERRORS, "service": SERVICE_ERRORS, "environment": ENVIRONMENT_ERRORS}
    kinds = KINDS.format(**{of: ", ".join(map(code, names)) for of, names in listed.items()})
    parts = [
        METRICS,
        *("## Of every rollout", metrics_table(ROLLOUT_METRICS), kinds),
        *("## Of every rollout whose turns were decided", metrics_table(DECIDE_METRICS)),
        *("## Of every output of a role", metrics_table(ROLE_METRICS)),
        *("## Of a training step", metrics_table(STEP_METRICS)),
        *("## Of the packaged rewards", metrics_table(COMPONENT_METRICS)),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    files = {path: commented(path, entries) for path, entries in our_settings().items()}
    for path, text in {**files, PAGE: reference(), METRICS_PAGE: metrics_page()}.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
