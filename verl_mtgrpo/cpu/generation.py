"""Generate tokens in batches with a Hugging Face causal language model; requests join as they arrive.

One ``TokenGenerator`` holds a batch of rows that decode together. Waiting requests are prefilled and
join the batch between two tokens; finished rows are answered and leave it at once. It is a plain
single-threaded object: ``serving`` runs it on a thread, tests call ``step`` themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from verl_mtgrpo.cpu.kv_cache import BatchCache
from verl_mtgrpo.cpu.sampling import BatchSampler, SamplingParams
from verl_mtgrpo.errors import ConfigError, GenerationError


@dataclass(frozen=True)
class Completion:
    """The generated tokens with one log-probability each; finish is "stop", "length" or "abort"."""

    token_ids: list[int]
    log_probs: list[float]
    finish: str


@dataclass(eq=False)
class Request:
    """One prompt to continue. The caller recognises it by ``tag``."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    seed: int
    tag: Any = None
    token_ids: list[int] = field(default_factory=list, init=False)
    log_probs: list[float] = field(default_factory=list, init=False)
    finish: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(self.params.max_tokens, dtype=torch.float64, generator=generator)
        self._uniforms: list[float] = drawn.tolist()

    def next_uniform(self) -> float:
        """Return this request's random number for its next token; it depends only on the seed."""
        return 0.0 if self.finish else self._uniforms[len(self.token_ids)]

    def completion(self, finish: str | None = None) -> Completion:
        """Return what was generated so far, as a completion."""
        return Completion(self.token_ids, self.log_probs, finish or self.finish or "abort")


class TokenGenerator:
    """Decodes many requests together.

    Args:
        model: a causal LM in eval mode with full attention in all layers, on the CPU.
        end_ids: the model's own end tokens (end a row unless ``ignore_eos``).
        max_rows: the most rows decoded together; further requests wait.
        max_prefill_tokens: the most prompt tokens, including padding, in one forward pass (a longer
            single prompt goes alone).
        decode: token ids to text, needed only for requests with ``stop`` strings.
        raw_log_probs: report the model's log-probabilities instead of the sampled distribution's.
    """

    # Joining copies the running rows' cache, so a lone newcomer waits up to this many tokens for company.
    JOIN_EVERY = 4
    # Rows are dropped from the batch (which copies it) once this share of them is finished.
    DROP_SHARE = 8

    def __init__(
        self,
        model: Any,
        *,
        end_ids: frozenset[int],
        max_rows: int = 256,
        max_prefill_tokens: int = 8192,
        decode: Callable[[list[int]], str] | None = None,
        raw_log_probs: bool = False,
    ) -> None:
        _check_attention(model.config)
        self.model = model
        self.end_ids = end_ids
        self.max_rows = max_rows
        self.max_prefill_tokens = max_prefill_tokens
        self._decode = decode
        self._raw_log_probs = raw_log_probs
        self._waiting: list[Request] = []
        self._unanswered: dict[int, Request] = {}  # by id(), all requests that step() has not returned yet
        self._steps_since_join = 0
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Request] = []
        self._cache: BatchCache | None = None
        self._start = torch.empty(0, dtype=torch.int64)  # first valid column of each row
        self._last = torch.empty(0, dtype=torch.int64)  # token to feed next
        self._sampler = BatchSampler([])

    @property
    def has_work(self) -> bool:
        """Return True if any request is running or waiting."""
        return bool(self._waiting or self._rows)

    def add(self, request: Request) -> None:
        """Queue a request. Raises ConfigError for an empty prompt, or for stop strings without a tokenizer."""
        if not request.prompt_ids:
            raise ConfigError("the prompt is empty", expected="at least one token")
        if request.params.stop and self._decode is None:
            raise ConfigError("stop strings need a tokenizer, but this generator has none")
        self._waiting.append(request)
        self._unanswered[id(request)] = request

    def abort_all(self) -> list[Request]:
        """Forget all requests that ``step`` has not returned, and return them with what they have so far.

        This also works right after ``step`` raised: no request is lost then, whatever it was doing.
        """
        unanswered = list(self._unanswered.values())
        self._waiting, self._unanswered = [], {}
        self._clear()
        return unanswered

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Let waiting requests join, then generate one token per row; return the rows that ended."""
        ended: list[Request] = []
        if self._should_join():
            newcomers, self._waiting = self._take_waiting()
            for chunk in self._prefill_chunks(newcomers):
                ended += self._prefill(chunk)
            self._steps_since_join = 0
        self._drop_finished()
        if self._rows:
            ended += self._decode_one()
            self._steps_since_join += 1
        for request in ended:
            del self._unanswered[id(request)]
        return ended

    def _should_join(self) -> bool:
        if not self._waiting or len(self._rows) >= self.max_rows:
            return False
        enough = len(self._waiting) * self.DROP_SHARE >= len(self._rows)
        return enough or self._steps_since_join >= self.JOIN_EVERY

    def _take_waiting(self) -> tuple[list[Request], list[Request]]:
        free = self.max_rows - len(self._rows)
        # Sorted so that a chunk needs little padding and equal prompts (a GRPO group) are neighbours.
        return sorted(self._waiting[:free], key=lambda r: (len(r.prompt_ids), r.prompt_ids)), self._waiting[free:]

    def _prefill_chunks(self, requests: list[Request]) -> list[list[Request]]:
        chunks: list[list[Request]] = [[]]
        for request in requests:  # ascending length: the newest is the widest
            if chunks[-1] and (len(chunks[-1]) + 1) * len(request.prompt_ids) > self.max_prefill_tokens:
                chunks.append([])
            chunks[-1].append(request)
        return chunks

    def _prefill(self, requests: list[Request]) -> list[Request]:
        """Run the prompts, draw each row's first token and join the rows to the batch."""
        distinct: dict[tuple[int, ...], int] = {}
        index = torch.tensor([distinct.setdefault(tuple(r.prompt_ids), len(distinct)) for r in requests])
        width = max(map(len, distinct))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in distinct])
        start = torch.tensor([width - len(p) for p in distinct])
        columns = torch.arange(width)
        visible = (columns <= columns[:, None]) & (columns >= start[:, None, None])
        # A padding position attends to itself: a mask row without any True gives nan in softmax.
        visible |= torch.eye(width, dtype=torch.bool)
        cache = BatchCache.empty(self.model.config.num_hidden_layers)
        positions = (columns - start[:, None]).clamp(min=0)
        logits = self._forward(ids, positions, visible.unsqueeze(1), cache)[index]
        cache, start = cache.select(index, first_column=0), start[index]
        last, ended = self._append_tokens(requests, BatchSampler([r.params for r in requests]), logits)
        self._join(requests, cache, start, last)
        return ended

    def _join(self, rows: list[Request], cache: BatchCache, start: torch.Tensor, last: torch.Tensor) -> None:
        if self._cache is None:
            self._rows, self._cache, self._start, self._last = list(rows), cache, start, last
        else:
            columns = max(self._cache.columns, cache.columns)
            self._start = torch.cat([self._start + columns - self._cache.columns, start + columns - cache.columns])
            self._cache = BatchCache.join(self._cache, cache)
            self._last = torch.cat([self._last, last])
            self._rows += rows
        self._sampler = BatchSampler([r.params for r in self._rows])

    def _decode_one(self) -> list[Request]:
        assert self._cache is not None  # there are rows
        columns = self._cache.columns
        positions = (columns - self._start).unsqueeze(-1)
        visible = (torch.arange(columns + 1) >= self._start[:, None])[:, None, None, :]
        logits = self._forward(self._last.unsqueeze(-1), positions, visible, self._cache)
        self._last, ended = self._append_tokens(self._rows, self._sampler, logits)
        return ended

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, cache: BatchCache
    ) -> torch.Tensor:
        """Return the logits after each row's last token, (rows, vocabulary) float32; the cache grows."""
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=visible,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _append_tokens(
        self, rows: list[Request], sampler: BatchSampler, logits: torch.Tensor
    ) -> tuple[torch.Tensor, list[Request]]:
        """Draw a token for every row and append it to unfinished ones; return (tokens, rows that ended)."""
        if not torch.isfinite(logits).all():
            raise GenerationError(
                "the model returned logits that are not finite: its weights are broken",
                fix="training has probably diverged: lower the learning rate, or start from an earlier checkpoint",
            )
        uniform = torch.tensor([r.next_uniform() for r in rows], dtype=torch.float64)
        tokens, log_probs = sampler.sample(logits, uniform, raw_log_probs=self._raw_log_probs)
        ended = []
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if row.finish is not None:
                continue
            row.token_ids.append(token)
            row.log_probs.append(log_prob)
            row.finish = self._finish_reason(row, token)
            if row.finish is not None:
                ended.append(row)
        return tokens, ended

    def _finish_reason(self, row: Request, token: int) -> str | None:
        params = row.params
        if token in params.stop_token_ids or (token in self.end_ids and not params.ignore_eos):
            return "stop"
        if params.stop and self._decode and any(text in self._decode(row.token_ids) for text in params.stop):
            return "stop"
        return "length" if len(row.token_ids) >= params.max_tokens else None

    def _drop_finished(self) -> None:
        alive = [i for i, row in enumerate(self._rows) if row.finish is None]
        if not alive:
            self._clear()
        elif (len(self._rows) - len(alive)) * self.DROP_SHARE >= len(self._rows):
            assert self._cache is not None  # there are rows
            index = torch.tensor(alive)
            first = int(self._start[index].min())
            self._cache = self._cache.select(index, first_column=first)
            self._start, self._last = self._start[index] - first, self._last[index]
            self._rows = [self._rows[i] for i in alive]
            self._sampler = BatchSampler([r.params for r in self._rows])


def _check_attention(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(
            f"the model has layers of type {sorted(kinds)}, and the CPU rollout server generates only with full "
            "attention in all layers",
            fix="choose another model, or for Qwen2 set use_sliding_window=false in its config",
        )
