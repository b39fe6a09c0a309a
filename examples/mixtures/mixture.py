"""Several policy servers propose a turn each: ``Mixture`` takes one by its value, ``Router`` learns whom to ask.

Both are deciders (docs/deciders.md) for rollouts that are measured and not trained on::

    trainer.turn.decide.when=validation trainer.turn.decide.by=examples/mixtures/mixture.py:Mixture
    trainer.turn.decide.score=my_scorer.py:score
    '+trainer.turn.decide.options.servers=[http://127.0.0.1:8001/v1,http://127.0.0.1:8002/v1]'

Servers are OpenAI-compatible endpoints. They get the chat so far, with tool results as messages of the user unless
``result_role`` says otherwise. run.py plays both with two tiny policies. Collab (arXiv 2503.21720) takes the best token
of several models, RLAE (arXiv 2506.00439) learns weights for spans of tokens: here the unit is a turn, which is another
method with the same idea.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from openai import AsyncOpenAI
from torch import Tensor

from verl_mtgrpo.deciders import Decision, Moment, Proposal, Scorer, score_of
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.own_code import load_own
from verl_mtgrpo.rewards import Transcript

Reference = Callable[[Transcript, str], Awaitable[float]]
OPTION = "trainer.turn.decide.options.reference"
TIMEOUT_S = 600.0


def mixture_values(
    scores: Sequence[float], log_probs: Sequence[float | None], reference: Sequence[float | None], alpha: float
) -> list[float]:
    """Return J_j = Q_j - α (log π_j(y_j) - log π_ref(y_j)) of each server's turn y_j.

    The difference is what one sample says of KL(π_j || π_ref), Collab's penalty; it is 0 where a log-prob is unknown.

    Args:
        scores: Q_j.
        log_probs: log π_j(y_j), of the server that wrote the turn; None if it does not tell.
        reference: log π_ref(y_j), of the same text; None if there is no reference.
        alpha: α ≥ 0.
    """
    known = zip(scores, log_probs, reference, strict=True)
    return [q if own is None or ref is None else q - alpha * (own - ref) for q, own, ref in known]


def router_gradient(logits_KJ: Tensor, chosen_BK: Tensor, advantage_BK: Tensor) -> Tensor:
    """Return the gradient of Σ_{i,k} A_{i,k} log p_k(j_{i,k}) with respect to the logits, p_k = softmax(logits_k).

    Args:
        logits_KJ: ``(K, J)`` float, of each turn's number over the servers.
        chosen_BK: ``(B, K)`` int, the server that was asked; -1 where a rollout has no such turn.
        advantage_BK: ``(B, K)`` float, of the turns: any of verl_mtgrpo.credit's estimators.
    """
    asked_BK = chosen_BK >= 0
    one_hot_BKJ = torch.nn.functional.one_hot(chosen_BK.clamp(min=0), logits_KJ.shape[1])
    weight_BK1 = torch.where(asked_BK, advantage_BK, 0.0)[..., None]
    return (weight_BK1 * (one_hot_BKJ - logits_KJ.softmax(-1))).sum(0)


class Server:
    """One policy behind an OpenAI-compatible endpoint.

    Args:
        address: Its URL with ``/v1``.
        model: The name that it knows the model by.
        max_tokens: Longest turn.
        stop: Where a turn ends, which is kept.
        result_role: Role of the messages that hold tool results.
    """

    def __init__(self, address: str, model: str, max_tokens: int, stop: Sequence[str], result_role: str) -> None:
        # A client that is garbage-collected closes its idle connections in whatever thread that happens, and with them
        # the event loop of this one may lose others, whose requests wait forever. So none is kept idle.
        close = {"Connection": "close"}
        # The client's own limit for a connection, 5 s, is too short where hundreds of rollouts begin at once.
        self._client = AsyncOpenAI(base_url=address, api_key="none", timeout=TIMEOUT_S, default_headers=close)
        self._model, self._max_tokens, self._stop, self._role = model, max_tokens, list(stop), result_role

    async def write(self, transcript: Transcript) -> tuple[str, float | None]:
        """Return the server's turn and its log-prob; None if the server does not tell."""
        more: Any = {"stop": self._stop, "extra_body": {"include_stop_str_in_output": True}} if self._stop else {}
        completion = await self._client.chat.completions.create(
            model=self._model, messages=chat(transcript, self._role), max_tokens=self._max_tokens, logprobs=True, **more
        )
        choice = completion.choices[0]
        told = choice.logprobs.content if choice.logprobs else None
        return choice.message.content or "", math.fsum(one.logprob for one in told) if told else None


def chat(transcript: Transcript, result_role: str = "user") -> Any:
    """Return the rollout so far as messages, with tool results as those of this role."""
    messages = [dict(message) for message in transcript.prompt]
    for turn in transcript.turns:
        messages.append({"role": "assistant", "content": turn.text})
        messages += [{"role": result_role, "content": call.result} for call in turn.tool_calls if call.seen]
    return messages


class _Several:
    def __init__(
        self,
        servers: Sequence[str],
        model: str = "policy",
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        result_role: str = "user",
    ) -> None:
        self.servers = [Server(address, model, max_tokens, stop, result_role) for address in servers]


class Mixture(_Several):
    """Takes the turn of the highest value minus α·KL.

    Args:
        scorer: Q of a turn (``trainer.turn.decide.score``).
        servers: Addresses.
        alpha: α.
        reference: ``file.py:function`` or ``package.module:function``, or the function itself: an ``async`` function of
            transcript and text that returns log π_ref(text). None for no KL.
        others: As of :class:`Server`.
    """

    def __init__(
        self,
        scorer: Scorer,
        servers: Sequence[str],
        alpha: float = 1.0,
        reference: str | Reference | None = None,
        **others: Any,
    ) -> None:
        super().__init__(servers, **others)
        self._scorer, self._alpha = scorer, alpha
        named = isinstance(reference, str)
        self._reference: Reference | None = load_own(reference, OPTION, "function") if named else reference

    async def decide(self, moment: Moment) -> Decision:
        """Return the best turn, the first server's of equals."""
        proposals: list[Proposal] = []
        log_probs: list[float | None] = []
        reference: list[float | None] = []
        for server in self.servers:
            text, log_prob = await server.write(moment.transcript)
            proposals.append(await moment.write(text))
            log_probs.append(log_prob)
            reference.append(await self._reference(moment.transcript, text) if self._reference else None)
        scores = [await score_of(self._scorer, moment.transcript, one.turn) for one in proposals]
        values = mixture_values(scores, log_probs, reference, self._alpha)
        return Decision(proposals[values.index(max(values))])


class Router(_Several):
    """Asks one server per turn, drawn by softmax(logits of this turn's number); the last row serves later turns.

    Args:
        servers: Addresses.
        logits: ``(K, J)`` as lists; None for all equal.
        log: A file that gets a line per turn: the rollout, the number of the turn, the server and its text.
        others: As of :class:`Server`.
    """

    def __init__(
        self, servers: Sequence[str], logits: Sequence[Sequence[float]] | None = None, log: str = "", **others: Any
    ) -> None:
        super().__init__(servers, **others)
        self.logits_KJ = torch.tensor(logits if logits is not None else [[0.0] * len(servers)], dtype=torch.float64)
        self._log = log

    async def decide(self, moment: Moment) -> Decision:
        """Return the turn of the server that is asked."""
        turn = len(moment.transcript.turns)
        weights = self.logits_KJ[min(turn, len(self.logits_KJ) - 1)].softmax(-1).tolist()
        (asked,) = moment.draw.choices(range(len(weights)), weights)
        text, _ = await self.servers[asked].write(moment.transcript)
        if self._log:
            with Path(self._log).open("a", encoding="utf-8") as file:
                told = {"rollout": moment.rollout, "turn": turn, "server": asked, "text": text}
                file.write(json.dumps(told) + "\n")
        return Decision(await moment.write(text))


class Methods:
    """Several of these deciders in one validation: the first ``size`` rows are the first one's, and so on.

    So that verl is started once to compare them. A row's number is ``extra_info.index``.

    Args:
        file: JSON: ``size``, and ``deciders``, each with ``by`` (``Mixture`` or ``Router``) and its options.
        scorer: Of mixtures.
    """

    def __init__(self, file: str, scorer: Scorer | None = None) -> None:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        self._size: int = found["size"]
        self._deciders: list[Mixture | Router] = []
        for options in found["deciders"]:
            self._deciders.append(_decider(**options, scorer=scorer))

    async def decide(self, moment: Moment) -> Decision:
        """Return what the row's decider takes."""
        _, row, _ = moment.rollout.split()
        return await self._deciders[int(row) // self._size].decide(moment)


def _decider(*, by: str, scorer: Scorer | None, **options: Any) -> Mixture | Router:
    if by == "Router":
        return Router(**options)
    if by != "Mixture":
        raise ConfigError(f"one of the deciders to compare has by={by!r}", expected="Mixture or Router")
    if scorer is None:
        raise ConfigError("a mixture has no scorer", fix="set trainer.turn.decide.score=FILE.py:FUNCTION")
    return Mixture(scorer, **options)
