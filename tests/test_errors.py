"""Errors of this package: three fields, one sentence, and the way through a pickle and through Ray."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import verl_mtgrpo
from verl_mtgrpo import errors
from verl_mtgrpo.errors import ConfigError, MTGRPOError, RetrievalBusy

PACKAGE = Path(verl_mtgrpo.__path__[0])


def kinds(root: type[MTGRPOError] = MTGRPOError) -> Iterator[type[MTGRPOError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


KINDS = sorted(set(kinds()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize(
    ("fields", "said", "found"),
    [
        ({}, "k is 0", "k is 0"),
        ({"fix": "set it to 3; or 4"}, "k is 0; set it to 3; or 4", "k is 0"),
        ({"expected": "at least 1"}, "k is 0, expected at least 1", "k is 0, expected at least 1"),
        (
            {"expected": "at least 1", "fix": "set it to 3"},
            "k is 0, expected at least 1; set it to 3",
            "k is 0, expected at least 1",
        ),
    ],
)
def test_an_error_is_one_sentence_and_its_fields(fields, said, found):
    error = ConfigError("k is 0", **fields)
    assert (str(error), error.found) == (said, found)
    assert (error.expected, error.fix) == (fields.get("expected", ""), fields.get("fix", ""))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_survives_a_pickle(kind):
    error = kind("got 1", expected="2", fix="give 2")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.expected, twin.fix) == ("got 1, expected 2; give 2", "2", "give 2")


def test_what_was_added_to_an_error_survives_too():
    error = RetrievalBusy("full", fix="wait")
    error.faults, error.status = ("busy", "timeout"), 429
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.faults, twin.status, twin.fix, twin.kind) == (("busy", "timeout"), 429, "wait", "busy")


@pytest.mark.network
def test_the_fields_can_be_read_where_ray_raises_it_again():
    exceptions = pytest.importorskip("ray.exceptions")
    cause = ConfigError("got 1", expected="2", fix="give 2")
    raised = exceptions.RayTaskError("work", "Traceback: ...", cause).as_instanceof_cause()
    assert isinstance(raised, ConfigError) and isinstance(raised, exceptions.RayTaskError)
    assert (raised.expected, raised.fix) == ("2", "give 2")


def test_every_error_stands_in_one_file():
    names = {kind.__name__ for kind in KINDS}
    assert {kind.__module__ for kind in KINDS} == {errors.__name__}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not bases & names, f"{path}: {node.name} belongs into errors.py"
