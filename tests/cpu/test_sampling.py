"""The choice of the next token and the parameters of a request."""

import math

import pytest
import torch

from verl_mtgrpo.cpu.sampling import BatchSampler, SamplingParams, end_token_ids, filter_logits
from verl_mtgrpo.errors import ConfigError


def sampler(**params):
    return BatchSampler([SamplingParams(max_tokens=1, **params)])


def test_draws_follow_the_distribution_at_the_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]])
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # evenly spread: no luck involved
    for temperature in (0.5, 1.0, 2.0):
        batch = BatchSampler([SamplingParams(max_tokens=1, temperature=temperature)] * len(uniform))
        tokens, log_probs = batch.sample(logits.expand(len(uniform), -1), uniform)
        expected = torch.softmax(logits[0] / temperature, dim=-1)
        shares = torch.bincount(tokens, minlength=4) / len(uniform)
        torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(log_probs, expected.log()[tokens])


def test_temperature_zero_is_greedy_with_the_log_probability_of_the_model():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    tokens, log_probs = sampler(temperature=0).sample(logits, torch.tensor([0.99], dtype=torch.float64))
    assert tokens.tolist() == [1]
    torch.testing.assert_close(log_probs, torch.log_softmax(logits, -1)[:, 1])


def test_raw_log_probs_ignore_the_temperature():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    tokens, log_probs = sampler(temperature=0.3).sample(
        logits, torch.tensor([0.5], dtype=torch.float64), raw_log_probs=True
    )
    torch.testing.assert_close(log_probs[0], torch.log_softmax(logits, -1)[0, tokens[0]])


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_impossible_tokens_are_never_drawn(uniform):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    tokens, _ = sampler().sample(logits, torch.tensor([uniform], dtype=torch.float64))
    assert tokens.item() in (1, 3)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (2, 1.0, [1, 3]),  # the two likeliest
        (-1, 0.5, [3]),  # 0.5 is reached by the likeliest alone
        (-1, 0.51, [1, 3]),
        (-1, 0.81, [0, 1, 3]),
        (1, 0.99, [3]),  # top-k first
        (2, 0.62, [3]),  # within the two kept the likeliest has 0.625 of the mass
        (2, 0.63, [1, 3]),
        (-1, 1e-9, [3]),  # the likeliest always stays
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(top_k, top_p, kept):
    logits = torch.tensor([0.15, 0.3, 0.05, 0.5]).log()
    filtered = filter_logits(logits, top_k=top_k, top_p=top_p)
    assert filtered.isfinite().nonzero().flatten().tolist() == kept


def test_log_probs_are_those_of_the_filtered_distribution():
    logits = torch.tensor([[0.15, 0.3, 0.05, 0.5]]).log()
    tokens, log_probs = sampler(top_k=2).sample(logits, torch.tensor([0.99], dtype=torch.float64))
    assert tokens.tolist() == [3]
    assert log_probs.item() == pytest.approx(math.log(0.5 / 0.8), abs=1e-6)


def test_rows_of_a_batch_keep_their_own_parameters():
    params = [
        SamplingParams(max_tokens=1, temperature=0),
        SamplingParams(max_tokens=1, temperature=0.5),
        SamplingParams(max_tokens=1, top_k=1),
        SamplingParams(max_tokens=1, temperature=2.0, top_p=0.7),
    ]
    torch.manual_seed(0)
    logits = torch.randn(4, 11)
    uniform = torch.rand(4, dtype=torch.float64)
    together = BatchSampler(params).sample(logits, uniform)
    for i, single in enumerate(params):
        token, log_prob = BatchSampler([single]).sample(logits[i : i + 1], uniform[i : i + 1])
        assert token.item() == together[0][i].item()
        torch.testing.assert_close(log_prob[0], together[1][i])


def test_from_verl_reads_what_an_agent_loop_passes():
    params = SamplingParams.from_verl(
        {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "logprobs": True,
            "max_tokens": 99,
            "stop_token_ids": [5, 6],
            "stop": "</answer>",
        },
        max_tokens=7,
    )
    assert params == SamplingParams(
        max_tokens=7, temperature=0.7, top_p=0.9, stop_token_ids=frozenset({5, 6}), stop=("</answer>",)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty is 1.2"),
        ({"min_p": 0.1}, "does not support the sampling parameters {'min_p': 0.1}"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -2}, "top_k is -2"),
    ],
)
def test_parameters_that_would_be_ignored_or_make_no_sense_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams.from_verl(given, max_tokens=1)


def test_end_tokens_are_the_union_of_all_places_that_name_one():
    class Config:
        def __init__(self, eos):
            self.eos_token_id = eos

    assert end_token_ids(Config(3), Config([4, 5]), Config(None), None) == {3, 4, 5}
