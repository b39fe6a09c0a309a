"""The credit report: one self-contained HTML page that makes no network requests.

The text of a rollout was written by a model and by whoever wrote the passages, so it is hostile. It never becomes
markup: the list's numbers and questions are JSON in a script element of a type that no browser runs, with every ``<``
escaped; the text of a group is compressed, in base64, and decoded when the group is opened. The page's scripts insert
it only as text, which the Content-Security-Policy enforces (``require-trusted-types-for``).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from verl_mtgrpo.atomic import atomic_write
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.report.calibration import calibrate
from verl_mtgrpo.report.calibration_tables import for_page
from verl_mtgrpo.report.catalog import Catalog, Entry, Group
from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.report.overview import curves, histograms, turn_rows
from verl_mtgrpo.report.pairs import pairs_of
from verl_mtgrpo.report.roles import places_of
from verl_mtgrpo.report.rollouts import DumpedRollout
from verl_mtgrpo.report.terms import Term
from verl_mtgrpo.report.tree import tree_of
from verl_mtgrpo.report.why import Why, explain_group, in_words
from verl_mtgrpo.rewards.transcript import ToolCall
from verl_mtgrpo.text import encodable

_PAGE = package_files("verl_mtgrpo.report").joinpath("page")
_STYLES = ("page.css", "rollouts.css")
_SCRIPTS = (
    *("dom", "data", "charts", "calibration", "overview", "filters", "list"),
    *("tree", "roles", "pairs", "group", "rollout", "route"),
)
# Points of a logged metric that are drawn: more than a chart has pixels on a screen.
_MOST_POINTS = 400

RIGHT, WRONG, USED, HIT, ERRORS, DROPPED, NO_HIT_DEFINED = 1, 2, 4, 8, 16, 32, 64
"""The flags of a rollout in the list; page/data.js has the same."""

_Passage = tuple[str, str, str, float]
"""Id, title, text and score of a passage."""


def write_page(
    path: Path,
    catalog: Catalog,
    *,
    title: str,
    made_by: str,
    metrics: RunMetrics | None = None,
    on_group: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Write the report group by group; replace an existing file when the new one is complete.

    Args:
        path: The HTML file.
        catalog: The rollouts to show.
        title: Title of the page.
        made_by: Version of this package.
        metrics: What verl logged, for curves.
        on_group: Wraps the stream of groups: a progress bar.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    index = _index(catalog, title=title, made_by=made_by, metrics=metrics)
    head, middle, end = frame(title)
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        file.write(f'<script type="application/json" id="index">{embedded(index)}</script>\n')
        file.write(middle)
        for number, (group, rollouts) in enumerate(on_group(catalog.read_groups(catalog.groups))):
            chunk = packed(details(group, rollouts))
            file.write(f'<script type="application/octet-stream" id="g{number}">{chunk}</script>\n')
        file.write(end)


def embedded(value: Any) -> str:
    """Return JSON that is safe in a script element whatever its strings contain: ASCII without markup."""
    try:
        text = _json(value)
    except ValueError:  # NaN or infinity, which JSON does not have: rare, and searching for them is slow
        text = _json(_finite(value))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def packed(value: Any) -> str:
    """Return JSON, compressed (zlib, which browsers call ``deflate``), in base64."""
    return base64.b64encode(zlib.compress(embedded(value).encode("ascii"), 6)).decode("ascii")


def frame(title: str, template: str = "page", main: str = "main") -> tuple[str, str, str]:
    """Return the page before the index, between index and groups, and after them.

    Args:
        title: Title of the page.
        template: Name of its HTML.
        main: Name of the script that draws it, after those that all pages share.
    """
    styles = "".join(_asset(name) for name in _STYLES)
    scripts = [_asset(f"{name}.js") for name in (*_SCRIPTS, main)]
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(map(_hash, scripts)),
            f"style-src {_hash(styles)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    page = _asset(f"{template}.html").replace("{{policy}}", policy).replace("{{title}}", _escaped(title))
    head, rest = page.replace("{{styles}}", styles).split("{{index}}\n")
    middle, end = rest.split("{{groups}}\n")
    # Before the groups: the list is shown while the browser is still reading their text.
    return head, middle.replace("{{scripts}}", "\n".join(f"<script>{script}</script>" for script in scripts)), end


def _asset(name: str) -> str:
    return _PAGE.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    # Braces too: they mark the places of the template.
    return html.escape(encodable(text)).replace("{", "&#123;").replace("}", "&#125;")


def _index(catalog: Catalog, *, title: str, made_by: str, metrics: RunMetrics | None) -> dict[str, Any]:
    sources = sorted({group.data_source for group in catalog.groups})
    return {
        "title": title,
        "madeBy": made_by,
        "sources": sources,
        **run_of(catalog, metrics),
        "groups": [group_row(group, sources) for group in catalog.groups],
    }


def run_of(catalog: Catalog, metrics: RunMetrics | None) -> dict[str, Any]:
    """Return what the page says of a run as a whole: files, estimators, numbers over all rollouts, logged metrics."""
    names = {group.estimator for group in catalog.groups}
    return {
        "files": [str(path) for path in catalog.files],
        "estimators": {
            name: {"words": in_words(name), "settings": catalog.estimators.get(name, [])} for name in sorted(names)
        },
        "kinds": {
            name: overview_of([group for group in catalog.groups if group.training is training])
            for name, training in (("training", True), ("validation", False))
            if any(group.training is training for group in catalog.groups)
        },
        "metrics": logged(metrics) if metrics else {},
    }


def overview_of(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the numbers over all rollouts, as page/overview.js draws them."""
    return {
        "turns": [_rounded(asdict(row)) for row in turn_rows(groups)],
        "curves": {
            title: [{"label": one.label, "points": _rounded(one.points)} for one in some]
            for title, some in curves(groups).items()
        },
        "histograms": [asdict(histogram) for histogram in histograms(groups)],
        "calibration": [for_page(one) for one in calibrate(groups)],
    }


def logged(metrics: RunMetrics) -> dict[str, list[list[float]]]:
    """Return name -> points, at most as many as can be seen."""
    found: dict[str, list[list[float]]] = {}
    for name, series in sorted(metrics.train.items()):
        steps = sorted(step for step in series if math.isfinite(series[step]))
        every = math.ceil(len(steps) / _MOST_POINTS) if steps else 1
        if steps:
            found[name] = [[step, _round(series[step])] for step in steps[::every]]
    return found


def group_row(group: Group, sources: Sequence[str]) -> list[Any]:
    """Return the group as page/data.js reads it."""
    return [
        group.step,
        int(group.training),
        sources.index(group.data_source),
        group.question,
        group.estimator,
        [
            [entry.number, _rounded(entry.rewards), [round(value, 4) for value in entry.advantages], _flags(entry)]
            for entry in group.entries
        ],
    ]


def _flags(entry: Entry) -> int:
    answered = 0 if entry.right is None else RIGHT if entry.right else WRONG
    return (
        answered
        | (USED if entry.used else 0)
        | (HIT if entry.hit else NO_HIT_DEFINED if entry.hit is None else 0)
        | (ERRORS if entry.errors else 0)
        | (DROPPED if entry.dropped else 0)
    )


def details(group: Group, rollouts: Sequence[DumpedRollout]) -> dict[str, Any]:
    """Return all that is shown of a group; a passage found by several searches is included once."""
    documents: dict[_Passage, int] = {}
    why = explain_group(rollouts, [rollout.advantages or () for rollout in rollouts], group.estimator)
    shown = [_rollout(rollout, some, documents) for rollout, some in zip(rollouts, why, strict=True)]
    return {
        "prompt": [_message(message) for message in rollouts[0].transcript.prompt],
        "answers": list(group.answers),
        "questionId": rollouts[0].question_id,
        "settings": dict(rollouts[0].settings),
        "rollouts": shown,
        "tree": _tree(rollouts),
        "roles": _roles(rollouts),
        "pairs": _pairs(rollouts),
        "documents": list(documents),
    }


def _tree(rollouts: Sequence[DumpedRollout]) -> dict[str, Any] | None:
    """Return the tree as page/tree.js reads it: numbers only, whatever the paths say; None if there are no paths."""
    tree, note = tree_of(rollouts)
    if tree is None:
        return None
    return {"nodes": tree.nodes, "parents": tree.parents, "order": tree.order, "note": note}


def _roles(rollouts: Sequence[DumpedRollout]) -> list[dict[str, Any]] | None:
    """Return the outputs of roles as page/roles.js reads them, each with the prompt of its role; None without roles."""
    places = places_of(rollouts)
    if places is None:
        return None
    return [
        {
            "role": place.role,
            "reads": list(place.reads),
            "talk": place.conversation,
            "learnt": place.learnt,
            "prompt": [_message(message) for message in one.transcript.prompt],
        }
        for place, one in zip(places, rollouts, strict=True)
    ]


def _pairs(rollouts: Sequence[DumpedRollout]) -> dict[str, Any] | None:
    """Return the pairs of actions as page/pairs.js reads them; None without any."""
    pairs = pairs_of(rollouts)
    if pairs is None:
        return None
    numbers = [(one.expert_ratio, one.own_ratio, one.beta, one.margin, one.share) for one in pairs]
    return {
        "sides": [one.pair_side for one in rollouts],
        "pairs": [[one.expert, one.own, *map(_round, some)] for one, some in zip(pairs, numbers, strict=True)],
    }


def _message(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    return [str(message.get("role", "")), content if isinstance(content, str) else json.dumps(content, default=str)]


def _rollout(rollout: DumpedRollout, why: Sequence[Why], documents: dict[_Passage, int]) -> dict[str, Any]:
    turns = [
        {
            "text": turn.text,
            "reward": rollout.turn_rewards[k],
            "credited": rollout.credited[k] if rollout.credited and rollout.learnt else None,
            "dense": [[name, values[k]] for name, values in rollout.dense.items()],
            "value": rollout.values[k] if rollout.values else None,
            "advantage": _round((rollout.advantages or ())[k]),
            "calls": [_call(call, documents) for call in turn.tool_calls],
            "note": rollout.notes[k] if rollout.notes else "",
            "words": why[k].words,
            "addsUp": why[k].adds_up,
            "terms": [_term(term) for term in why[k].terms],
        }
        for k, turn in enumerate(rollout.transcript.turns)
    ]
    return {
        "turns": turns,
        "end": rollout.transcript.end_reason,
        "maxTurns": rollout.transcript.max_turns,
        "format": rollout.transcript.format,
        "dropped": rollout.dropped,
        "outcomeNote": rollout.outcome_note,
        "components": _rounded(dict(sorted(rollout.components.items()))),
    }


def _term(term: Term) -> list[Any]:
    """Return the term as page/rollout.js reads it."""
    std = None if term.std is None else _round(term.std)
    weight, adds = _round(term.weight), _round(term.adds)
    parts = [
        [part.kind, _round(part.value), _round(part.weight), part.reduce, [[at, _round(x)] for at, x in part.readers]]
        for part in term.parts
    ]
    of = [term.count, term.baseline, term.ended, term.leaves, parts]
    return [term.kind, term.turn, _round(term.value), _round(term.mean), std, weight, adds, *of]


def _call(call: ToolCall, documents: dict[_Passage, int]) -> dict[str, Any]:
    return {
        "name": call.name,
        "arguments": call.arguments,
        "result": call.result,
        "ok": call.ok,
        "kind": call.error_kind,
        "error": call.error or call.why,
        "changed": call.changed,
        "seen": call.seen,
        "repeat": call.repeat,
        "faults": list(call.faults),
        "seconds": _round(call.latency_s),
        "reward": call.reward,
        "documents": [documents.setdefault(_passage(one), len(documents)) for one in call.documents],
    }


def _passage(document: Passage) -> _Passage:
    return str(document.id), str(document.title), str(document.text), _round(document.score)


def _rounded(value: Any) -> Any:
    """Round every float to six digits; three are shown."""
    if isinstance(value, float):
        return _round(value)
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value


def _round(value: float) -> float:
    return float(f"{value:.6g}") + 0.0


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
