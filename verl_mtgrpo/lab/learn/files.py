"""Read a task of one's own from a YAML file: names, numbers and nothing that could be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.lab.learn.task import Node, Task, Way
from verl_mtgrpo.plain_yaml import read_yaml

EXAMPLE = """\
name: one search
about: Answer by heart, or search and read.
policy: {search: 0.2, read: 0.1}      # each logit's probability of yes before training
starts: {ask: 1.0}                    # first node: share of the questions
goal: exact                           # the mark that says how well it is done; left out: the mean reward
watch: tool                           # the behaviour that may be unlearned; may be left out
nodes:
  ask:
    turn: 1
    decides: search
    yes: [{to: read, reward: 0.2, marks: [tool]}]
    no: [{probability: 0.3, reward: 1.0, marks: [exact]}, {probability: 0.7}]
  read:
    turn: 2
    decides: read
    yes: [{reward: 1.0, marks: [exact]}]
    no: [{}]
"""


def load_task(path: Path) -> Task:
    """Return the task that a YAML file describes, as :data:`EXAMPLE` does.

    Raises:
        ConfigError: there is no such file, or it does not describe a task.
    """
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--task {path}: there is no such file", fix="see `mtgrpo lab learn --example`") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--task {path} is no YAML: {error}", fix="see `mtgrpo lab learn --example`") from error
    given = _fields(Task, found, f"--task {path}")
    nodes = given["nodes"]
    if not isinstance(nodes, Mapping):
        raise ConfigError(f"--task {path}: nodes is {nodes!r}", expected="names with nodes")
    given["nodes"] = {str(name): _node(node, f"--task {path}: node {name}") for name, node in nodes.items()}
    for key in ("policy", "starts"):
        if not isinstance(given[key], Mapping) or not given[key]:
            raise ConfigError(f"--task {path}: {key} is {given[key]!r}", expected="names with numbers")
        given[key] = {str(name): _number(value, f"--task {path}: {key}.{name}") for name, value in given[key].items()}
    for key in ("name", "about", "goal", "watch"):
        if key in given and not isinstance(given[key], str):
            raise ConfigError(f"--task {path}: {key} is {given[key]!r}", expected="text")
    return Task(**given)


def _node(found: Any, where: str) -> Node:
    given = _fields(Node, found, where)
    if isinstance(given["turn"], bool) or not isinstance(given["turn"], int) or given["turn"] < 1:
        raise ConfigError(f"{where}: turn is {given['turn']!r}", expected="a whole number from 1")
    for answer in ("yes", "no"):
        ways = given.get(answer, [])
        if not isinstance(ways, list):
            raise ConfigError(f"{where}: {answer} is {ways!r}", expected="a list of what may follow")
        given[answer] = tuple(_way(way, f"{where}: {answer}") for way in ways)
    return Node(**given)


def _way(found: Any, where: str) -> Way:
    given = _fields(Way, found, where)
    for key in ("probability", "reward"):
        if key in given:
            given[key] = _number(given[key], f"{where}: {key}")
    marks = given.get("marks", [])
    if not isinstance(marks, list) or not all(isinstance(mark, str) for mark in marks):
        raise ConfigError(f"{where}: marks is {marks!r}", expected="a list of names")
    given["marks"] = tuple(marks)
    return Way(**given)


def _fields(kind: type[Task] | type[Node] | type[Way], found: Any, where: str) -> dict[str, Any]:
    """Return the mapping, if it has every field that it needs and no other."""
    known = {field.name: field for field in fields(kind)}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where} is {found!r}", expected=f"a mapping with {', '.join(known)}")
    # YAML 1.1 reads yes and no as true and false.
    found = {{True: "yes", False: "no"}.get(key, key) if isinstance(key, bool) else key: found[key] for key in found}
    needed = {"Task": ("name", "policy", "starts", "nodes"), "Node": ("turn", "yes"), "Way": ()}[kind.__name__]
    for key in found:
        if key not in known:
            raise ConfigError(f"{where}: {key!r} is unknown", expected=f"some of {', '.join(known)}")
    for key in needed:
        if key not in found:
            raise ConfigError(f"{where}: {key} is missing", expected=f"{', '.join(needed)}")
    return {"about": "", **found} if kind is Task else dict(found)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ConfigError(f"{where} is {value!r}", expected="a number")
    return float(value)
