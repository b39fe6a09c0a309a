"""Batched generation against Hugging Face's own, one prompt at a time."""

import random

import pytest
import torch

from tests.tiny_model import make_model
from verl_mtgrpo.cpu.generation import Request, TokenGenerator
from verl_mtgrpo.cpu.sampling import SamplingParams
from verl_mtgrpo.errors import ConfigError, GenerationError

pytestmark = pytest.mark.heavy

VOCABULARY = 97
END = 7


@pytest.fixture(scope="module")
def model():
    return make_model(VOCABULARY, layers=2, hidden=64)


def prompts(count, *, seed=0, shortest=1, longest=30):
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(rng.randint(shortest, longest))] for _ in range(count)]


def generate(model, requests, *, together=True, arrivals=None, **options):
    """Run requests to their end; ``arrivals[step]`` is how many are added before that step."""
    generator = TokenGenerator(model, end_ids=options.pop("end_ids", frozenset({END})), **options)
    pending = list(requests)
    arrivals = list(arrivals or [len(pending) if together else 1])
    ended = []
    while pending or generator.has_work:
        for _ in range(arrivals.pop(0) if len(arrivals) > 1 else arrivals[0]):
            if pending:
                generator.add(pending.pop(0))
        ended += generator.step()
    assert sorted(map(id, ended)) == sorted(map(id, requests)), "each request is answered exactly once"
    return requests


def greedy(max_tokens, **params):
    return SamplingParams(max_tokens=max_tokens, temperature=0, **params)


def hugging_face(model, prompt, max_tokens):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def full_forward_log_probs(model, prompt, tokens, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)


@pytest.mark.parametrize("arrivals", [[24], [1], [5, 0, 0, 1, 9, 0, 0, 0, 2]], ids=["at once", "one by one", "mixed"])
def test_greedy_tokens_are_those_of_hugging_face(model, arrivals):
    asked = prompts(24)
    requests = [Request(p, greedy(5 + 3 * (i % 7)), seed=i) for i, p in enumerate(asked)]
    generate(model, requests, arrivals=arrivals)
    for request, prompt in zip(requests, asked, strict=True):
        assert request.token_ids == hugging_face(model, prompt, request.params.max_tokens)
        assert request.finish == ("stop" if request.token_ids[-1] == END else "length")


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_log_probs_equal_a_full_forward_pass(model, temperature):
    asked = prompts(16, seed=1)
    params = SamplingParams(max_tokens=25, temperature=temperature)
    requests = generate(model, [Request(p, params, seed=i) for i, p in enumerate(asked)], arrivals=[3])
    for request, prompt in zip(requests, asked, strict=True):
        expected = full_forward_log_probs(model, prompt, request.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(request.log_probs), expected, atol=1e-5, rtol=1e-5)


def test_a_request_draws_the_same_tokens_alone_and_in_any_company(model):
    """Left padding, joining, dropping and chunked prefill change nothing."""
    asked = prompts(20, seed=2, longest=60)
    params = SamplingParams(max_tokens=20)

    def run(**options):
        requests = [Request(p, params, seed=i) for i, p in enumerate(asked)]
        return [r.token_ids for r in generate(model, requests, **options)]

    alone = [
        run_one.token_ids for i, p in enumerate(asked) for run_one in generate(model, [Request(p, params, seed=i)])
    ]
    assert run() == alone
    assert run(arrivals=[2, 0, 7, 1]) == alone
    assert run(max_rows=3) == alone
    assert run(max_prefill_tokens=64) == alone


def test_equal_prompts_with_different_seeds_differ_and_with_equal_seeds_agree(model):
    params = SamplingParams(max_tokens=12)
    a, b, c = generate(model, [Request([1, 2, 3], params, seed=s) for s in (0, 1, 0)])
    assert a.token_ids != b.token_ids
    assert a.token_ids == c.token_ids


def test_rows_end_at_stop_tokens_at_stop_strings_and_at_the_limit(model):
    prompt = prompts(1, seed=3, shortest=10)[0]
    free = generate(model, [Request(prompt, greedy(20, ignore_eos=True), seed=0)])[0].token_ids
    assert len(free) == 20
    stop = free[9]
    first = free.index(stop)

    def run(params, **options):
        return generate(model, [Request(prompt, params, seed=0)], end_ids=frozenset(), **options)[0]

    by_id = run(greedy(20, stop_token_ids=frozenset({stop})))
    assert (by_id.token_ids, by_id.finish) == (free[: first + 1], "stop")
    by_text = run(greedy(20, stop=(f"<{stop}>",)), decode=lambda ids: "".join(f"<{i}>" for i in ids))
    assert (by_text.token_ids, by_text.finish) == (free[: first + 1], "stop")
    limited = run(greedy(4))
    assert (limited.token_ids, limited.finish) == (free[:4], "length")


def test_ignore_eos_goes_on_after_the_end_token(model):
    for prompt in prompts(60, seed=4):
        ended = generate(model, [Request(prompt, SamplingParams(max_tokens=40), seed=1)])[0].token_ids
        if END in ended[:-1] or (ended[-1] == END and len(ended) < 40):
            break
    else:
        pytest.fail("no prompt reaches the end token, the test model changed")
    ignoring = SamplingParams(max_tokens=40, ignore_eos=True)
    longer = generate(model, [Request(prompt, ignoring, seed=1)])[0].token_ids
    assert len(longer) == 40 and longer[: len(ended)] == ended


def test_abort_gives_back_everything_and_leaves_the_generator_usable(model):
    generator = TokenGenerator(model, end_ids=frozenset())
    requests = [Request(p, greedy(30), seed=i) for i, p in enumerate(prompts(6, seed=5))]
    for request in requests[:4]:
        generator.add(request)
    for _ in range(3):
        generator.step()
    for request in requests[4:]:
        generator.add(request)
    assert set(map(id, generator.abort_all())) == set(map(id, requests))
    assert not generator.has_work
    assert [len(r.token_ids) for r in requests] == [4, 4, 4, 4, 0, 0]  # the prefill gives one more
    again = Request(requests[0].prompt_ids, greedy(30), seed=0)
    generator.add(again)
    while generator.has_work:
        generator.step()
    assert again.token_ids[:4] == requests[0].token_ids


def test_broken_weights_are_an_error_and_lose_no_request():
    broken = make_model(VOCABULARY, layers=1, hidden=64)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    generator = TokenGenerator(broken, end_ids=frozenset())
    requests = [Request([1, 2], SamplingParams(max_tokens=3), seed=i) for i in range(3)]
    for request in requests:
        generator.add(request)
    with pytest.raises(GenerationError, match="not finite"):
        generator.step()
    assert len(generator.abort_all()) == 3


def test_requests_and_models_that_cannot_work_are_refused(model):
    generator = TokenGenerator(model, end_ids=frozenset())
    with pytest.raises(ConfigError, match="prompt is empty"):
        generator.add(Request([], greedy(1), seed=0))
    with pytest.raises(ConfigError, match="stop strings need a tokenizer"):
        generator.add(Request([1], greedy(1, stop=("x",)), seed=0))
    sliding = make_model(
        VOCABULARY, layers=2, hidden=64, use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    with pytest.raises(ConfigError, match="full attention"):
        TokenGenerator(sliding, end_ids=frozenset())
