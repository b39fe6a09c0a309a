"""The generation thread: futures, seeds, aborts and failures."""

import concurrent.futures
import threading

import pytest
import torch

from tests.tiny_model import make_model
from verl_mtgrpo.cpu.generation import TokenGenerator
from verl_mtgrpo.cpu.sampling import SamplingParams
from verl_mtgrpo.cpu.serving import GenerationThread
from verl_mtgrpo.errors import ConfigError, GenerationError

pytestmark = pytest.mark.heavy

VOCABULARY = 61
TIMEOUT = 60


@pytest.fixture
def serve():
    threads = []

    def start(*, seed=0, model=None, **options):
        model = model or make_model(VOCABULARY, layers=1, hidden=64)
        generator = TokenGenerator(model, end_ids=frozenset(), **options)
        threads.append(GenerationThread(generator, seed=seed))
        return threads[-1]

    yield start
    for thread in threads:
        thread.close()


def params(max_tokens=8, **kwargs):
    return SamplingParams(max_tokens=max_tokens, **kwargs)


def answers(futures):
    return [future.result(TIMEOUT).token_ids for future in futures]


def test_many_clients_at_once_all_get_their_own_answer(serve):
    server = serve(max_rows=16)
    lengths = [1 + i % 13 for i in range(128)]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        futures = list(pool.map(lambda n: server.submit([n, 2, 3], params(n)), lengths))
    assert [len(tokens) for tokens in answers(futures)] == lengths


def test_a_run_draws_the_same_tokens_in_whatever_order_its_requests_arrive(serve):
    prompts = [[i, 1] for i in range(12)]

    def run(order, seed=0):
        server = serve(seed=seed)
        futures = {i: server.submit(prompts[i], params()) for i in order}
        return [futures[i].result(TIMEOUT).token_ids for i in range(len(prompts))]

    assert run(range(12)) == run(reversed(range(12)))
    assert run(range(12)) != run(range(12), seed=1)


def test_equal_prompts_differ_and_differ_again_under_new_weights(serve):
    server = serve()
    first = answers([server.submit([5], params()) for _ in range(4)])
    assert len(set(map(tuple, first))) == 4
    server.new_weights(lambda: None).result(TIMEOUT)
    second = answers([server.submit([5], params()) for _ in range(4)])
    assert set(map(tuple, first)).isdisjoint(map(tuple, second))


def test_new_weights_are_used_from_then_on_and_never_in_the_middle_of_a_token(serve):
    model, other = (make_model(VOCABULARY, layers=1, hidden=64, seed=s) for s in (0, 1))
    server = serve(model=model)
    greedy = params(12, temperature=0)
    before = server.submit([1, 2], greedy).result(TIMEOUT).token_ids
    server.new_weights(lambda: model.load_state_dict(other.state_dict())).result(TIMEOUT)
    after = server.submit([1, 2], greedy).result(TIMEOUT).token_ids
    assert before != after
    assert after == serve(model=other).submit([1, 2], greedy).result(TIMEOUT).token_ids


def test_abort_answers_with_the_tokens_so_far_and_pauses_until_resume(serve):
    server = serve()
    long = server.submit([1], params(100_000))
    while server.call(lambda: len(server._generator._rows)).result(TIMEOUT) == 0:
        pass
    assert server.abort_all(reject=False).result(TIMEOUT) == 1
    cut = long.result(TIMEOUT)
    assert cut.finish == "abort"
    assert len(cut.token_ids) == len(cut.log_probs) < 100_000
    waiting = server.submit([1], params(3))
    with pytest.raises(concurrent.futures.TimeoutError):
        waiting.result(0.2)
    server.resume().result(TIMEOUT)
    assert len(waiting.result(TIMEOUT).token_ids) == 3


def test_requests_are_refused_while_paused_if_asked(serve):
    server = serve()
    server.abort_all(reject=True).result(TIMEOUT)
    assert server.submit([1], params()).result(TIMEOUT).finish == "abort"


def test_a_failing_model_fails_its_requests_and_serves_again_when_repaired(serve):
    model = make_model(VOCABULARY, layers=1, hidden=64)
    good = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    server = serve(model=model)
    for future in [server.submit([1], params()) for _ in range(3)]:
        with pytest.raises(GenerationError, match="not finite"):
            future.result(TIMEOUT)
    server.new_weights(lambda: model.load_state_dict(good)).result(TIMEOUT)
    assert len(server.submit([1], params()).result(TIMEOUT).token_ids) == 8


def test_errors_of_the_caller_reach_the_caller_alone(serve):
    server = serve()
    fine = server.submit([1], params())
    with pytest.raises(ConfigError, match="prompt is empty"):
        server.submit([], params()).result(TIMEOUT)
    with pytest.raises(ZeroDivisionError):
        server.call(lambda: 1 / 0).result(TIMEOUT)
    assert len(fine.result(TIMEOUT).token_ids) == 8


def test_close_fails_open_requests_and_ends_the_thread():
    server = GenerationThread(TokenGenerator(make_model(VOCABULARY, layers=1, hidden=64), end_ids=frozenset()), seed=0)
    before = threading.active_count()
    open_request = server.submit([1], params(100_000))
    server.close()
    with pytest.raises(GenerationError, match="closed before the request ended"):
        open_request.result(TIMEOUT)
    with pytest.raises(GenerationError, match="closed"):
        server.submit([1], params())
    assert threading.active_count() == before - 1
