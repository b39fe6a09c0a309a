"""Run a TokenGenerator on a thread: submit requests from anywhere, get futures."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from verl_mtgrpo.cpu.generation import Completion, Request, TokenGenerator
from verl_mtgrpo.cpu.sampling import SamplingParams
from verl_mtgrpo.errors import GenerationError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class GenerationThread:
    """Runs a generator on one daemon thread; everything that touches the model happens there.

    Args:
        generator: owned by this object from now on.
        seed: a request without a seed gets one from this, its prompt, the weights' version and
            how often that prompt was seen with it: the same run draws the same tokens in whatever
            order its requests arrive.
    """

    def __init__(self, generator: TokenGenerator, *, seed: int) -> None:
        self._generator = generator
        self._seed = seed
        self._wakeup = threading.Condition()
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._paused = False
        self._reject = False
        self._closed = False
        self._weights_version = 0
        self._seen: Counter[bytes] = Counter()
        self._thread = threading.Thread(target=self._run, name="mtgrpo-generation", daemon=True)
        self._thread.start()

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> Future[Completion]:
        """Queue a prompt. The future fails if generation fails, and is always answered."""

        def add() -> Future[Completion]:
            answer: Future[Completion] = Future()
            request = Request(list(prompt_ids), params, self._request_seed(prompt_ids, params), tag=answer)
            if self._paused and self._reject:
                answer.set_result(request.completion("abort"))
            else:
                self._generator.add(request)
            return answer

        outer: Future[Completion] = Future()
        self._enqueue(add).add_done_callback(lambda added: _chain(added, outer))
        return outer

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` on the thread between two tokens (e.g. to load weights)."""
        return self._enqueue(function)

    def new_weights(self, load: Callable[[], None]) -> Future[None]:
        """Run ``load`` on the thread and count a new version of the weights."""

        def run() -> None:
            load()
            self._weights_version += 1
            self._seen.clear()

        return self._enqueue(run)

    def abort_all(self, *, reject: bool) -> Future[int]:
        """Answer all requests with what they have (finish "abort") and pause until ``resume``.

        Until then new requests wait, or are answered as aborted at once if ``reject``. The
        future's result is the number of requests cut off.
        """

        def abort() -> int:
            self._paused, self._reject = True, reject
            cut = self._generator.abort_all()
            for request in cut:
                request.tag.set_result(request.completion("abort"))
            return len(cut)

        return self._enqueue(abort)

    def resume(self) -> Future[None]:
        """Let requests run again."""

        def run() -> None:
            self._paused, self._reject = False, False

        return self._enqueue(run)

    def close(self) -> None:
        """Stop the thread; unanswered requests fail."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify()
        self._thread.join()

    def _enqueue(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._wakeup:
            if self._closed:
                raise GenerationError("the generation thread is closed and serves no more requests")
            self._calls.append((function, future))
            self._wakeup.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._wakeup:
                while not (self._calls or self._closed or self._can_step):
                    self._wakeup.wait()
                calls, self._calls = self._calls, []
                closed = self._closed
            for function, future in calls:
                _answer(function, future)
            if closed:
                self._fail_all(GenerationError("the generation thread was closed before the request ended"))
                return
            if self._can_step:
                self._step()

    @property
    def _can_step(self) -> bool:
        return self._generator.has_work and not self._paused

    def _step(self) -> None:
        try:
            for request in self._generator.step():
                request.tag.set_result(request.completion())
        except Exception as error:
            logger.exception("generation failed; all requests of the batch fail")
            self._fail_all(GenerationError(f"generation failed: {type(error).__name__}: {error}"))

    def _fail_all(self, error: GenerationError) -> None:
        for request in self._generator.abort_all():
            request.tag.set_exception(error)

    def _request_seed(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed
        prompt = hashlib.blake2b(repr(list(prompt_ids)).encode(), digest_size=16).digest()
        count = self._seen[prompt]
        self._seen[prompt] += 1
        parts = f"{self._seed} {self._weights_version} {count} ".encode() + prompt
        return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "big") >> 1


def _answer(function: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


def _chain(added: Future[Future[Completion]], outer: Future[Completion]) -> None:
    """Forward the inner future's answer, or the error that prevented it."""
    if (error := added.exception()) is not None:
        outer.set_exception(error)
        return
    inner = added.result()

    def forward(done: Future[Completion]) -> None:
        if (failure := done.exception()) is not None:
            outer.set_exception(failure)
        else:
            outer.set_result(done.result())

    inner.add_done_callback(forward)
