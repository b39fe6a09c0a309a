"""Score estimators on AgentCreditBench's three tasks with its two families of metrics, beside its published numbers.

Source of tasks, metrics, protocols and published numbers: hectopascal/agent-credit-bench@02afaf3 (7 September 2026,
DOI 10.5281/zenodo.22178938): src/agent_credit_bench/{envs,metrics.py,gradients.py,benchmark.py}, experiments/ and
results/audit_fixes_2026-09-07. Written from its definitions, none of its code. A batch there is one group here.

*Identification*: is what an estimator says an advantage? *Gradient*: does the policy gradient point the right way, and
how much does it scatter? A batch's gradient is a mean over rollouts; norms are relative to that of the exact one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.lab.learn.learner import advantages_of, gradient, may_see_all
from verl_mtgrpo.lab.learn.methods import method, names
from verl_mtgrpo.lab.learn.rollouts import Walks, sample
from verl_mtgrpo.lab.learn.task import Task
from verl_mtgrpo.lab.learn.tasks import delayed_effect, recovery, variable_horizon
from verl_mtgrpo.report.tables import markdown_table

_ZERO = 1e-8  # its epsilon: smaller advantages count as zero
_DIGITS = 5  # our estimators work in float32; what differs by less is a tie, and less than that is zero

Credits = Callable[[Task, Tensor, Walks], Tensor]
Score = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """A task with a batch size and a number of batches, as in one of its experiments."""

    name: str
    task: Task
    size: int
    batches: int


SETTINGS = (
    Setting("recovery", recovery(), 2000, 30),
    *(Setting(f"delayed effect, horizon {h}", delayed_effect(horizon=h), 1000, 10) for h in (2, 8, 32)),
    *(Setting(f"variable horizon, G = {size}", variable_horizon(), size, 5000) for size in (2, 4, 8)),
    Setting("variable horizon, G = 500", variable_horizon(), 500, 200),
)

PUBLISHED: dict[str, dict[str, Score]] = {
    "recovery": {
        "oracle": {"BAD": -0.2500, "RECOVER": 0.5000, "all BAD": -0.2500, "cosine": 1.0000, "error": 0.0102},
        "outcome broadcast": {"BAD": 1.0, "RECOVER": 1.0, "all BAD": 0.5022, "cosine": 0.9987, "error": 0.0420},
        "trajectory RLOO": {"BAD": 0.2491, "RECOVER": 0.2491, "all BAD": -0.2490, "cosine": 0.9999, "error": 0.0231},
        "grpo_or": {"BAD": 0.5756, "RECOVER": 0.5756, "all BAD": -0.5755, "cosine": 0.9999, "error": 1.3044},
        "turn_gae": {"BAD": 0.56, "RECOVER": 1.10},
        "turn_gae:lam=0.0": {"BAD": -0.69, "RECOVER": 1.42},
        "GiGPO-style (theirs)": {
            "BAD": 1.1511,
            "RECOVER": 1.5714,
            "all BAD": -1.1509,
            "cosine": 0.9993,
            "error": 3.4581,
        },
    },
    "delayed effect, horizon 8": {
        "oracle": {"leak": 0.0, "leakage ratio": 0.0},
        "outcome broadcast": {"leak": 0.4979, "leakage ratio": 0.8750},
        "trajectory RLOO": {"leak": 0.5003, "leakage ratio": 0.8750},
        "grpo_or": {"leak": 0.9996, "leakage ratio": 0.8750},
        "GiGPO-style (theirs)": {"leak": 1.8087, "leakage ratio": 0.8636},
    },
    "variable horizon, G = 2": {
        "trajectory RLOO": {"mean cosine": 0.9999, "mean error": 0.0205, "MSE": 2.9637},
        "turn_rloo": {"mean cosine": 0.9999, "mean error": 0.0197, "MSE": 3.0659},
        "TurnLOO before its fix (theirs)": {"mean cosine": 0.9743, "mean error": 0.2254, "MSE": 1.9414},
    },
    "variable horizon, G = 4": {
        "trajectory RLOO": {"mean cosine": 0.9999, "mean error": 0.0151, "MSE": 0.8859},
        "turn_rloo": {"mean cosine": 0.9999, "mean error": 0.0103, "MSE": 1.0019},
        "TurnLOO before its fix (theirs)": {"mean cosine": 0.9886, "mean error": 0.1514, "MSE": 0.7778},
    },
    "variable horizon, G = 8": {
        "trajectory RLOO": {"mean cosine": 1.0000, "mean error": 0.0083, "MSE": 0.3597},
        "turn_rloo": {"mean cosine": 1.0000, "mean error": 0.0090, "MSE": 0.3879},
        "TurnLOO before its fix (theirs)": {"mean cosine": 0.9957, "mean error": 0.0929, "MSE": 0.3718},
    },
    "variable horizon, G = 500": {
        "oracle": {"RMSE": 0.0, "centred RMSE": 0.0, "Spearman": 1.0, "sign": 1.0, "MSE": 0.0009},
        "trajectory RLOO": {"RMSE": 0.8558, "centred RMSE": 0.6953, "Spearman": 0.6865, "sign": 0.7672, "MSE": 0.0045},
        "turn_rloo": {"RMSE": 0.6991, "centred RMSE": 0.6970, "Spearman": 0.7265, "sign": 0.8998, "MSE": 0.0033},
    },
}
"""What AgentCreditBench has published for the same task, batch size and number of batches; ``turn_rloo`` stands beside
its TurnLOO, which keeps the raw return where a rollout is alone, ``turn_gae`` beside verl's ``gae`` with exact values
(one batch, seed 0), ``grpo_or`` beside its GRPO-style."""

_SHOWN = {
    "recovery": ("BAD", "RECOVER", "all BAD", "RMSE", "sign", "cosine", "error"),
    "delayed effect": ("leak", "leakage ratio", "RMSE", "centred RMSE", "cosine", "error", "MSE"),
    "variable horizon": ("RMSE", "centred RMSE", "Spearman", "sign", "mean cosine", "mean error", "MSE"),
}

WORDS = (
    "BAD, RECOVER: mean credit in successful rollouts that erred first (exact: -0.25, +0.50); all BAD: over every BAD "
    "(exact: -0.25). Leak: mean |credit| of an action without effect (exact: 0); leakage ratio: its share of all "
    "|credit|. RMSE: distance from the advantage; centred: up to a shift for each state. Sign: how often the sign is "
    "right where the advantage is not 0. Cosine, error: of a batch's gradient, mean over batches; mean cosine, mean "
    "error: of the mean gradient of all batches, which only a bias keeps from 1 and 0 as batches grow in number; MSE: "
    "squared error plus variance. Normalising by a standard deviation changes the length, and with it the errors, not "
    "the direction. Published numbers in brackets."
)


def run_all(
    specs: Sequence[str], *, quick: bool = False, on_batches: Callable[[int], object] = lambda _: None
) -> dict[str, dict[str, Score]]:
    """Return setting -> estimator -> metric, for the reference estimators and the methods of ``specs``."""
    # Rewards come at the end here: grpo_mr is grpo_or.
    everything = [name for name in [*names(), "turn_gae:lam=0.0"] if name != "grpo_mr"]
    chosen = [name for spec in specs for name in (everything if spec == "all" else [spec])]
    credits: dict[str, Credits] = {**REFERENCES, **{name: _of(name) for name in dict.fromkeys(chosen)}}
    scores: dict[str, dict[str, Score]] = {}
    for setting in SETTINGS:
        batches = max(2, setting.batches // (20 if quick else 1))
        logits = setting.task.start_logits.repeat(batches, 1)
        draws = [torch.Generator().manual_seed(seed) for seed in range(batches)]
        walks = sample(setting.task, logits, draws, groups=1, size=setting.size)
        scores[setting.name] = {}
        for name, credit in credits.items():
            scores[setting.name][name] = score(setting.task, logits, walks, credit(setting.task, logits, walks))
            on_batches(batches)
    return scores


def score(task: Task, logits_LP: Tensor, walks: Walks, credit_BD: Tensor) -> Score:
    """Return both families of metrics for the credit of L batches of the same size."""
    batches = len(logits_LP)
    alive_BD = walks.node_BD >= 0
    rows_BD = torch.arange(len(alive_BD))[:, None].expand_as(alive_BD)
    batch = (rows_BD // (len(alive_BD) // batches))[alive_BD]
    node = walks.node_BD[alive_BD]
    said, true = credit_BD.double()[alive_BD], advantages(task, logits_LP[:1], walks)[alive_BD]

    def mean(values: Tensor, of: Tensor) -> float:
        """Return the mean over batches of the mean of a batch; a batch without any does not count."""
        count = torch.zeros(batches, dtype=torch.float64).index_add_(0, batch[of], torch.ones_like(values[of]))
        total = torch.zeros(batches, dtype=torch.float64).index_add_(0, batch[of], values[of])
        return float((total / count)[count > 0].mean()) if bool((count > 0).any()) else float("nan")

    def root_mean(values: Tensor) -> float:
        count = torch.bincount(batch, minlength=batches)
        return float((torch.zeros(batches, dtype=torch.float64).index_add_(0, batch, values) / count).sqrt().mean())

    off = said - true
    none = true.abs() < _ZERO
    key = batch * len(task.order) + node
    visits = torch.bincount(key).clamp(min=1)
    shift = torch.zeros(len(visits), dtype=torch.float64).index_add_(0, key, off) / visits
    total = torch.zeros(batches, dtype=torch.float64).index_add_(0, batch, said.abs())
    leaked = torch.zeros(batches, dtype=torch.float64).index_add_(0, batch, said.abs() * none)
    found = {
        "RMSE": root_mean(off.square()),
        "centred RMSE": root_mean((off - shift[key]).square()),
        "Spearman": _spearman(said, true, batch),
        "sign": mean((_rounded(said).sign() == true.sign()).double(), ~none),
        "leak": mean(said.abs(), none),
        "leakage ratio": float((leaked / (total + _ZERO)).mean()),
        **_of_gradients(gradient(task, logits_LP, walks, credit_BD), task.exact_gradient(logits_LP[:1])[0]),
    }
    if task.name == "recovery":
        # The first step says no: BAD. The second says yes and is paid: RECOVER.
        bad = (node == task.order.index("s0")) & ~walks.yes_BD[alive_BD]
        repaired_B = ~walks.yes_BD[:, 0] & (walks.reward_BD[:, 1] == 1.0)
        repaired = repaired_B[rows_BD[alive_BD]]
        found |= {"BAD": mean(said, bad & repaired), "RECOVER": mean(said, ~bad & repaired), "all BAD": mean(said, bad)}
    return found


def advantages(task: Task, logits_1P: Tensor, walks: Walks) -> Tensor:
    """Return the exact advantage of each token, Q(node, answer) - V(node), ``(B, D)`` float64, 0 behind the end."""
    value_1N, answer_1N2 = task.values(logits_1P)
    node_BD = walks.node_BD.clamp(min=0)
    return (answer_1N2[0][node_BD, walks.yes_BD.long()] - value_1N[0][node_BD]).masked_fill(walks.node_BD < 0, 0.0)


def _of(name: str) -> Credits:
    chosen = method(name)

    def credit(task: Task, logits_LP: Tensor, walks: Walks) -> Tensor:
        together = chosen.compares_rollouts and may_see_all(task, chosen, logits_LP[:20], _first(walks, logits_LP, 20))
        return advantages_of(task, chosen, logits_LP, walks, together=together)

    return credit


def _first(walks: Walks, logits_LP: Tensor, batches: int) -> Walks:
    """Return the first batches."""
    rows = len(walks.node_BD) // len(logits_LP) * min(batches, len(logits_LP))
    return Walks(*(x[:rows] for x in (walks.node_BD, walks.yes_BD, walks.reward_BD, walks.group_B, walks.turn_BD)))


def _total(walks: Walks) -> Tensor:
    return walks.reward_BD.sum(dim=1, keepdim=True)


def _broadcast(values_B1: Tensor, walks: Walks) -> Tensor:
    return values_B1 * (walks.node_BD >= 0)


def _trajectory_rloo(task: Task, logits_LP: Tensor, walks: Walks) -> Tensor:
    """Return the total minus the mean total of the others, on every token: its BatchCenteredBroadcast."""
    total_LG = _total(walks).view(len(logits_LP), -1)
    others = (total_LG.sum(dim=1, keepdim=True) - total_LG) / (total_LG.shape[1] - 1)
    return _broadcast((total_LG - others).reshape(-1, 1), walks)


REFERENCES: dict[str, Credits] = {
    "oracle": lambda task, logits_LP, walks: advantages(task, logits_LP[:1], walks),
    "outcome broadcast": lambda task, logits_LP, walks: _broadcast(_total(walks), walks),
    "trajectory RLOO": _trajectory_rloo,
}
"""Estimators of AgentCreditBench that say whether this is the same test: they have to give the published numbers."""


def _of_gradients(of_batch_LP: Tensor, exact_P: Tensor) -> Score:
    length = exact_P.norm()
    mean_P = of_batch_LP.mean(dim=0)
    cosine_L = torch.nn.functional.cosine_similarity(of_batch_LP, exact_P[None], dim=1)
    moved_L = of_batch_LP.norm(dim=1) > 0  # a gradient of length 0 has no direction
    mean_error = float((mean_P - exact_P).norm() / length)
    variance = float((of_batch_LP - mean_P).square().sum(dim=1).mean() / length.square())
    return {
        "cosine": float(cosine_L[moved_L].mean()) if moved_L.any() else float("nan"),
        "error": float(((of_batch_LP - exact_P).norm(dim=1) / length).mean()),
        "mean cosine": float(torch.nn.functional.cosine_similarity(mean_P, exact_P, dim=0)),
        "mean error": mean_error,
        "MSE": mean_error**2 + variance,
    }


def _spearman(said: Tensor, true: Tensor, batch: Tensor) -> float:
    """Return the mean over batches of the rank correlation; 0 where one side has a single value."""
    order = batch.argsort(stable=True)
    ends = torch.bincount(batch).cumsum(dim=0)[:-1].numpy()
    pairs = zip(*(np.split(_rounded(values)[order].numpy(), ends) for values in (said, true)), strict=True)
    found: list[float] = []
    for one, other in pairs:
        a, b = _ranks(one), _ranks(other)
        a, b = a - a.mean(), b - b.mean()
        spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
        found.append(float((a * b).sum()) / spread if spread > 0 else 0.0)
    return float(np.mean(found))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def _rounded(values: Tensor) -> Tensor:
    return values.mul(10**_DIGITS).round().div(10**_DIGITS)


def as_markdown(scores: dict[str, dict[str, Score]]) -> str:
    """Return one Markdown table per setting, with the published numbers in brackets."""
    parts = [WORDS]
    for setting in SETTINGS:
        shown = next(metrics for task, metrics in _SHOWN.items() if setting.name.startswith(task))
        found, published = scores[setting.name], PUBLISHED.get(setting.name, {})
        rows: list[list[str]] = []
        for name in [*found, *(name for name in published if name.endswith("(theirs)"))]:
            ours, theirs = found.get(name, {}), published.get(name, {})
            rows.append([_title(name), *(_cell(ours.get(metric), theirs.get(metric)) for metric in shown)])
        parts.append(f"### {setting.name}\n\n{markdown_table(['estimator', *shown], rows)}")
    return "\n\n".join(parts)


def as_csv(scores: dict[str, dict[str, Score]]) -> str:
    """Return every number: one row per setting, estimator and metric, with what was published."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setting", "batch_size", "batches_published", "estimator", "metric", "value", "published"])
    for setting in SETTINGS:
        for name, found in scores[setting.name].items():
            for metric, value in found.items():
                published = PUBLISHED.get(setting.name, {}).get(name, {}).get(metric, "")
                row = [setting.name, setting.size, setting.batches, name, metric, f"{value:.6g}", published]
                writer.writerow(row)
    return out.getvalue()


def _title(name: str) -> str:
    if name in REFERENCES or name.endswith("(theirs)"):
        return name
    return method(name).title + (" = GRPO" if name == "grpo_or" else "")


def _cell(ours: float | None, theirs: float | None) -> str:
    here = "" if ours is None or ours != ours else f"{ours:.3f}"
    return here if theirs is None else f"{here} ({theirs:.3f})".strip()
