"""Read the roles of a file, and merge them with what the config says beside it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.plain_yaml import read_yaml
from verl_mtgrpo.roles.settings import RolesSettings
from verl_mtgrpo.settings import did_you_mean

KEY = "trainer.turn.roles"
_MERGE = "tag:yaml.org,2002:merge"


def with_file(settings: RolesSettings, of_group: RolesSettings) -> RolesSettings:
    """Return the settings with those of their file: the config group, then the file, then what is set beside it.

    A value that differs from the group's was set beside it. What is set of a single role is added to the file's role.

    Args:
        settings: ``trainer.turn.roles``, with a file.
        of_group: What the config group alone says there; the defaults without one.

    Raises:
        ConfigError: The file cannot be read, or a role is named beside it that it does not have.
    """
    found = _loaded(settings.file)
    filed = RolesSettings.read(found, settings.file)
    own = {key: value for key, value in settings if value != getattr(of_group, key)}
    new = {key: getattr(filed, key) for key in filed.model_fields_set if key not in own and key != "file"}
    if "names" in filed.model_fields_set:
        new["names"] = _with_names(filed.names, settings, of_group)
        for key in {"answers", "finish_role"} - own.keys() - filed.model_fields_set:
            new[key] = named if (named := getattr(of_group, key)) in new["names"] else ""  # else of a role that is gone
    return settings.model_copy(update=new)


def _with_names(filed: Mapping[str, Any], settings: RolesSettings, of_group: RolesSettings) -> dict[str, Any]:
    merged = dict(filed)
    for name, values in settings.names.items():
        if name in of_group.names and values == of_group.names[name]:
            continue  # the file's roles take the place of the group's
        if name not in filed:
            raise ConfigError(
                f"{KEY}.names has {name}, but {settings.file} names {', '.join(filed)}{did_you_mean(name, filed)}",
                fix=f"correct the name, or name all roles in {settings.file}",
            )
        merged[name] = _with_keys(filed[name], values, of_group.names.get(name) or {})
    return merged


def _with_keys(filed: Any, beside: Any, known: Mapping[str, Any]) -> Any:
    """Return a file's role with what is set of it beside the file; one of the two if that is no mapping of keys."""
    if beside is None or not isinstance(filed, Mapping | None):
        return filed
    if not isinstance(beside, Mapping):
        return beside
    said = {key: value for key, value in beside.items() if key not in known or value != known[key]}
    return {**(filed or {}), **said}


def _loaded(file: str) -> Any:
    try:
        found = read_yaml(Path(file).expanduser().read_text(encoding="utf-8"), _Once)
    except (OSError, RuntimeError, UnicodeDecodeError, yaml.YAMLError) as error:  # RuntimeError: no such home folder
        said = error.__cause__ or error
        message = f"{KEY}.file={file} cannot be read: {type(said).__name__}: {said}"
        unread = isinstance(error, OSError | UnicodeDecodeError)
        fix = "name a YAML file that every machine of the run can read" if unread else "correct the file"
        raise ConfigError(message, fix=fix) from error
    if found is not None and not isinstance(found, Mapping):
        raise ConfigError(f"{KEY}.file={file} contains {found!r}", expected="a mapping with the key names")
    if found and "file" in found:
        raise ConfigError(f"{file} has the key file", expected="roles; a file of roles reads no other one")
    return found


class _Once(yaml.SafeLoader):
    """Reads plain YAML, builds no other objects, and refuses a key given twice; PyYAML would keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping; raise an error if two keys are equal."""
        seen = set[Any]()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found {name!r} twice", key.start_mark)
            if isinstance(name, Hashable):
                seen.add(name)
        return super().construct_mapping(node, deep)
