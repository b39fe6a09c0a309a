"""The paper's results on question answering, to compare your own with.

From arXiv 2505.11821, second version: its Table 2, and Table 5 (appendix E), which repeats the study of the first
version. The data say where a row of Table 2 comes from: not all were trained by the paper's authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PAPER_SETS = ("NQ", "TriviaQA", "PopQA", "HotpotQA", "2Wiki", "MuSiQue")
"""The data sets of the paper's averages (second version), in its order."""
PAPER_AVERAGE = "average of the paper's six"
"""The name of the mean over these in tables."""
ORDER = (*PAPER_SETS, "Bamboogle")
"""The order in which papers on search agents list these data sets."""

_ALIASES = {
    "nq": "NQ",
    "nq_open": "NQ",
    "natural_questions": "NQ",
    "triviaqa": "TriviaQA",
    "trivia_qa": "TriviaQA",
    "popqa": "PopQA",
    "hotpotqa": "HotpotQA",
    "hotpot_qa": "HotpotQA",
    "2wiki": "2Wiki",
    "2wikimultihopqa": "2Wiki",
    "musique": "MuSiQue",
    "bamboogle": "Bamboogle",
}


@dataclass(frozen=True)
class Published:
    """Exact match of one method in the paper.

    Attributes:
        method: Its name there.
        version: Version of the paper, with its set-up.
        em: Data set -> exact match.
        average: Mean over :data:`PAPER_SETS`, as published.
    """

    method: str
    version: str
    em: Mapping[str, float] = field(default_factory=dict[str, float])
    average: float | None = None

    @property
    def label(self) -> str:
        """The name in tables."""
        return f"paper: {self.method} ({self.version})"


def _sets(*values: float) -> dict[str, float]:
    return dict(zip(PAPER_SETS, values, strict=True))


PUBLISHED = (
    Published("MT-PPO", "v2", _sets(0.490, 0.647, 0.459, 0.453, 0.424, 0.209), 0.447),
    Published("PPO-OR", "v2", _sets(0.483, 0.639, 0.456, 0.435, 0.382, 0.199), 0.432),
    Published("PPO-MR", "v2", _sets(0.472, 0.629, 0.452, 0.436, 0.402, 0.180), 0.429),
    Published("GRPO-MR", "v2", _sets(0.453, 0.628, 0.450, 0.416, 0.375, 0.164), 0.414),
    Published("GRPO-OR", "v2", _sets(0.391, 0.560, 0.388, 0.331, 0.306, 0.129), 0.351),
    Published("MT-GRPO", "v1", {"TriviaQA": 0.5010}),
    Published("GRPO-MR", "v1", {"TriviaQA": 0.3346}),
    Published("GRPO-OR", "v1", {"TriviaQA": 0.0}),
)

NOTES = (
    "The columns *paper: …* are numbers of arXiv 2505.11821 for its models, not for the one evaluated here: Qwen2.5-7B "
    "(base), trained and tested with Wikipedia. v2: E5, 3 passages per search, up to 4 turns. v1: BM25, 1 passage, one "
    "search; its exact match compares lower-cased text, without SQuAD's normalisation.",
    "Of v2's rows PPO-MR and GRPO-MR are copied from arXiv 2505.15117, GRPO-OR and PPO-OR are public checkpoints "
    "of Search-R1; these four are trained with Search-R1's rewards, not with MT-PPO's. Its averages are over its six "
    "sets. It also reports a format rate (all turns of a rollout well formed) of 0.999 for MT-PPO, 0.895 for PPO-OR "
    "and 0.534 for GRPO-OR; v1 a tool execution of 1.00 for MT-GRPO.",
)


def natural_name(data_source: str) -> str:
    """Return the usual name of the data set that verl's ``data_source`` names (``searchR1_nq`` and ``nq`` are NQ)."""
    bare = data_source.strip().lower().removeprefix("searchr1_").replace("-", "_")
    return _ALIASES.get(bare, data_source.strip() or "(unnamed)")
