"""The rubrics of the preset ``judge``: our own, which name no tool and no task, or the user's, as text or in a file.

A rubric says what is good. The range of the scores and the form of the reply are always ours and follow it, so that
every rubric leads to scores that can be read and paid.
"""

from __future__ import annotations

import re
from pathlib import Path

from verl_mtgrpo.errors import ConfigError

TURN_RUBRIC = """\
You grade turns of an assistant that works on a task with the help of tools. Consider three things equally: is the \
turn in the format it should be in and complete; is its reasoning sound; does what it does with its tools help to \
reach an accepted answer. Grade each turn by what was known when it was written and by its own results: what later \
turns do or find changes nothing."""
TURN_SCALE = "Give each turn a score from -1 (harmful) over 0 (neither) to 1 (as good as it can be)."
OUTCOME_RUBRIC = """\
You grade the final answer of an assistant. It is right if it means the same as one of the accepted answers. Wording, \
case and extra detail do not matter; several answers of which one is right are wrong."""
OUTCOME_SCALE = "Give the final answer 1 if it is right, else 0."

_FILE = re.compile(r"[^\n]+\.(?:txt|md)")


def rubric_text(value: str, key: str, default: str) -> str:
    """Return a rubric: the default if the setting is empty, a file's text if it ends in .txt or .md, else the setting.

    Args:
        value: The setting.
        key: Its name, for messages.
        default: The rubric for an empty setting.

    Raises:
        ConfigError: The file cannot be read, or there is nothing in it.
    """
    if not value.strip():
        return default
    if not _FILE.fullmatch(value.strip()):
        return value.strip()
    try:
        text = Path(value.strip()).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}={value} cannot be read: {type(error).__name__}: {error}",
            expected="a text file in UTF-8, or the rubric itself (a text that does not end in .txt or .md)",
            fix="correct the path, preferably to an absolute one",
        ) from error
    if not text:
        raise ConfigError(f"{key}={value} is empty", fix="write down there what makes a turn or an answer good")
    return text
