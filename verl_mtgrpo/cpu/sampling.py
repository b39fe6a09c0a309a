"""Sampling parameters of a request, and the choice of the next token.

Follows what verl's vLLM server does with the same parameters: temperature 0 is greedy, -1 or 0 turns
top-k off, and the log-probability reported is under the distribution that the token was drawn from
(after temperature, top-k and top-p; ``processed_logprobs``) or under the model's (``raw_logprobs``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from verl_mtgrpo.errors import ConfigError

# Uniform numbers are clamped below this, so that they never select beyond the last possible token.
_ALMOST_ONE = 1.0 - 2.0**-40


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of one request.

    Args:
        max_tokens: the most tokens to generate, at least 1.
        temperature: 0 is greedy, otherwise logits are divided by it.
        top_k: draw from the k likeliest tokens; -1 or 0 is off.
        top_p: draw from the smallest set of likeliest tokens with at least this mass; 1.0 is off.
        stop_token_ids: a row ends when it generates one of these (which is kept).
        stop: a row ends when its decoded text contains one of these strings (all tokens are kept).
        ignore_eos: the model's end tokens do not end a row.
        seed: seed of this request's random numbers; None lets the generator choose.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}", expected="at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}", expected="0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}", expected="a number in (0, 1]")
        if self.top_k < -1:
            raise ConfigError(f"top_k is {self.top_k}", expected="-1 or 0 (off) or a positive number")

    @classmethod
    def from_verl(cls, params: Mapping[str, Any], *, max_tokens: int) -> SamplingParams:
        """Read the dict that an agent loop passes; the caller handles its token limit and ``logprobs``.

        Raises ConfigError for an unknown parameter: otherwise the request would silently be
        sampled in another way than requested.
        """
        rest = dict(params)
        for handled_by_caller in ("max_tokens", "max_new_tokens", "logprobs"):
            rest.pop(handled_by_caller, None)
        if (penalty := rest.pop("repetition_penalty", 1.0)) != 1.0:
            raise ConfigError(
                f"repetition_penalty is {penalty}",
                expected="1.0 (off), the only value that the CPU rollout server supports",
            )
        stop = rest.pop("stop", None) or ()
        known = cls(
            max_tokens=max_tokens,
            temperature=float(rest.pop("temperature", 1.0)),
            top_k=int(rest.pop("top_k", -1)),
            top_p=float(rest.pop("top_p", 1.0)),
            stop_token_ids=frozenset(rest.pop("stop_token_ids", None) or ()),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            ignore_eos=bool(rest.pop("ignore_eos", False)),
            seed=rest.pop("seed", None),
        )
        if unknown := {key: value for key, value in rest.items() if value is not None}:
            raise ConfigError(
                f"the CPU rollout server does not support the sampling parameters {unknown}",
                fix="remove them, or use a GPU rollout server",
            )
        return known


@dataclass
class BatchSampler:
    """The sampling parameters of a batch of rows as tensors, one entry per row."""

    params: Sequence[SamplingParams]
    temperature: torch.Tensor = field(init=False)
    greedy: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        temperature = torch.tensor([p.temperature for p in self.params], dtype=torch.float32)
        self.greedy = temperature == 0
        self.temperature = torch.where(self.greedy, torch.ones_like(temperature), temperature)
        self._filtered = [i for i, p in enumerate(self.params) if p.temperature > 0 and (p.top_k > 0 or p.top_p < 1)]

    def sample(
        self, logits: torch.Tensor, uniform: torch.Tensor, *, raw_log_probs: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the next token of each row; return it with its log-probability.

        Args:
            logits: (rows, vocabulary) float32.
            uniform: (rows,) float64 in [0, 1), the randomness of this step. A row's token depends on
                its logits and its number only, not on the rest of the batch.
            raw_log_probs: report the model's log-probability instead of the sampled distribution's.

        Returns:
            (tokens, log_probs), both (rows,), int64 and float32.
        """
        scaled = logits / self.temperature.unsqueeze(-1)
        for i in self._filtered:
            scaled[i] = filter_logits(scaled[i], top_k=self.params[i].top_k, top_p=self.params[i].top_p)
        log_probs = torch.log_softmax(scaled, dim=-1)
        tokens = torch.where(self.greedy, logits.argmax(dim=-1), _draw(log_probs, uniform))
        reported = torch.log_softmax(logits, dim=-1) if raw_log_probs else log_probs
        return tokens, reported.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _draw(log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw (rows,) token ids by inverse-CDF sampling, never tokens of probability 0."""
    cumulative = log_probs.double().exp().cumsum(dim=-1)
    target = uniform.clamp(max=_ALMOST_ONE).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def filter_logits(logits: torch.Tensor, *, top_k: int, top_p: float) -> torch.Tensor:
    """Return a copy of one row of logits with all tokens outside top-k and then top-p set to -inf."""
    ordered, order = logits.sort(descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k > 0:
        keep[top_k:] = False
    if top_p < 1:
        probs = torch.softmax(ordered.masked_fill(~keep, float("-inf")), dim=-1)
        # A token stays if the likelier ones do not reach top_p yet; the likeliest always stays.
        keep &= probs.cumsum(dim=-1) - probs < top_p
    return torch.full_like(logits, float("-inf")).scatter(0, order[keep], ordered[keep])


def end_token_ids(*configs: Any) -> frozenset[int]:
    """Return the union of ``eos_token_id`` (int, list or None) of model config, generation config, tokenizer."""
    found: set[int] = set()
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        if isinstance(value, Iterable):
            found.update(int(v) for v in value)
        elif value is not None:
            found.add(int(value))
    return frozenset(found)
