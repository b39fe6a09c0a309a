"""Text that tries to get out of where it is put, in every field of a dump."""

from __future__ import annotations

import json
from typing import Any

from tests.report.made import training_row
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn

# Each would set window.broken, open a dialog, ask the network for something, or make an element.
HOSTILE = (
    "<script>window.broken = 1; alert(1)</script>",
    "</script><script>window.broken = 2; alert(2)</script>",
    "<!--<script>",
    "--></style></title><img src=http://127.0.0.1:9/x onerror='window.broken=3;alert(3)'>",
    "<svg/onload=alert(4)><iframe srcdoc='<script>parent.broken=5</script>'></iframe>",
    '"><a href="javascript:window.broken=6">click</a><form action=//127.0.0.1:9><input autofocus onfocus=alert(7)>',
    "{{index}} {{scripts}} ${window.broken=8} {{constructor.constructor('alert(9)')()}} #{7*7} <%= 7*7 %>",
    "</pre></td></table><style>*{display:none!important}</style><link rel=stylesheet href=//127.0.0.1:9/x.css>",
    "@import url(//127.0.0.1:9/x.css); } body { background: url(//127.0.0.1:9/x.png) }",
    "\u2028\u2029\x00\x1b[2J\ud800 \udfff lone \udc00 \u202e reversed \ufeff",
    "\\u003c/script\\u003e &lt;b&gt; &#60;script&#62; ]]> ]]&gt; <b>bold</b>",
    "__proto__",
    "constructor",
)
EVERYTHING = "\n".join(HOSTILE)


def hostile_transcript(text: str = EVERYTHING) -> Transcript:
    documents = (Passage(id=text, title=text, text=text, score=1.0),)
    calls = (
        ToolCall(text, text, text, documents=documents, faults=(text,)),
        ToolCall(text, text, text, ok=False, error_kind=text, error=text, seen=False),
        ToolCall(text, text, text, ok=False, error_kind=text, why=text, changed=True),
    )
    prompt = ({"role": text, "content": text}, {"role": "user", "content": text})
    return Transcript((Turn(text, (0, 2), calls), Turn(text, (3, 4))), text, prompt, 2, text)


def hostile_rows(text: str = EVERYTHING) -> list[dict[str, Any]]:
    """A group of two rollouts that were trained on, with the text wherever text can be."""
    more = {
        "gts": {"target": [text]},
        "data_source": text,
        "question_id": text,
        "estimator": text,
        "estimator_settings": json.dumps({text: text}),
        f"tool/{text}": 1.0,
        f"outcome/{text}": float("nan"),
        "turn_notes": json.dumps({"turns": [text, text], "outcome": text}),
    }
    rollout = hostile_transcript(text)
    return [
        {**training_row(text, 0, rollout, [0.5, 1.0], [1.0, 0.5]), **more},
        {
            **training_row(text, 1, rollout, [0.0, 0.0], [-1.0, -0.5]),
            **more,
            "outcome/dropped": 1.0,
            "dropped_reason": text,
        },
    ]
