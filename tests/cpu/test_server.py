"""The rollout server's own rules, with verl's real config classes and without Ray."""

import asyncio

import pytest
import torch

from tests.tiny_model import save_model
from verl_mtgrpo.errors import ConfigError, GenerationError

pytest.importorskip("verl")

pytestmark = pytest.mark.imports_verl


@pytest.fixture(scope="module")
def model_config(tmp_path_factory):
    from verl.workers.config import HFModelConfig

    folder = save_model(tmp_path_factory.mktemp("model"), layers=1, hidden=64)
    return HFModelConfig(path=str(folder), override_config={"attn_implementation": "sdpa"})


@pytest.fixture
def make_server(model_config):
    from verl.workers.config import RolloutConfig

    from verl_mtgrpo.cpu.server import CpuServer

    servers = []

    def make(**overrides):
        settings = {
            "name": "hf_cpu",
            "dtype": "float32",
            "load_format": "auto",
            "prompt_length": 16,
            "response_length": 12,
            "max_num_batched_tokens": 512,
            "tensor_model_parallel_size": 1,
        }
        config = RolloutConfig(**{**settings, **overrides})
        servers.append(CpuServer(config, model_config, replica_rank=0))
        return servers[-1]

    yield make
    for server in servers:
        server.thread.close()


def ask(server, prompt, **sampling):
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True, "ignore_eos": True, **sampling}
    return asyncio.run(server.generate(prompt_ids=prompt, sampling_params=sampling, request_id="r"))


@pytest.mark.parametrize(
    ("prompt_length", "asked", "expected"),
    [
        (5, {}, 12),  # response_length
        (20, {}, 8),  # what is left of prompt_length + response_length
        (28, {}, 1),  # never less than one token
        (40, {}, 1),
        (5, {"max_tokens": 3}, 3),
        (5, {"max_new_tokens": 4}, 4),
        (20, {"max_tokens": 11}, 11),  # an explicit limit is not cut by the row's length
        (5, {"max_tokens": 0}, 1),
    ],
)
def test_token_limit_is_verls(make_server, prompt_length, asked, expected):
    output = ask(make_server(), [3] * prompt_length, **asked)
    assert len(output.token_ids) == len(output.log_probs) == expected
    assert output.stop_reason == "completed"


def test_the_models_context_is_never_exceeded(make_server):
    server = make_server(max_model_len=32)
    assert len(ask(server, [3] * 30, max_tokens=9).token_ids) == 2
    with pytest.raises(ConfigError, match="prompt has 32 tokens"):
        ask(server, [3] * 32)
    with pytest.raises(ConfigError, match="max_model_len is 4096"):
        make_server(max_model_len=4096)


def test_output_carries_what_verls_client_reads(make_server):
    server = make_server()
    asyncio.run(server.set_global_steps(7))
    output = ask(server, [3, 4])
    assert output.extra_fields["global_steps"] == 7
    assert output.num_preempted == 0
    assert ask(server, [3, 4], logprobs=False).log_probs is None


def test_rows_end_at_the_tokenizers_end_token(make_server, model_config):
    end = model_config.tokenizer.eos_token_id
    server = make_server(response_length=200)
    weights = asyncio.run(server.get_weights())
    weights["lm_head.weight"].zero_()
    weights["lm_head.weight"][end] = weights["model.norm.weight"] * 0 + 1e-3
    asyncio.run(server.load_weights(weights, global_steps=1))
    output = ask(server, [3], ignore_eos=False)
    assert output.token_ids[-1] == end and end not in output.token_ids[:-1]
    assert server.global_steps == 1


def test_weights_arrive_exactly_and_completely_or_not_at_all(make_server):
    server = make_server()
    weights = asyncio.run(server.get_weights())
    changed = {name: weight + 1e-7 for name, weight in weights.items()}
    asyncio.run(server.load_weights(changed, global_steps=3))
    received = asyncio.run(server.get_weights())
    assert received.keys() == changed.keys()
    assert all(torch.equal(received[name], changed[name]) for name in changed)
    partial = {name: weight for name, weight in weights.items() if name != "lm_head.weight"}
    with pytest.raises(GenerationError, match=r"at 1 places, first at lm_head.weight: got shape nothing"):
        asyncio.run(server.load_weights(partial, global_steps=4))
    wrong = {**weights, "lm_head.weight": weights["lm_head.weight"][:5]}
    with pytest.raises(GenerationError, match=r"got shape \(5, 64\)"):
        asyncio.run(server.load_weights(wrong, global_steps=4))
    assert server.global_steps == 3
    received = asyncio.run(server.get_weights())
    assert all(torch.equal(received[name], changed[name]) for name in changed)


def test_without_weights_there_is_no_answer(make_server):
    server = make_server(load_format="dummy")
    with pytest.raises(GenerationError, match="no weights yet"):
        ask(server, [3])


def cut_off(server):
    async def run():
        sampling = {"max_tokens": 500, "ignore_eos": True, "logprobs": True}
        request = asyncio.create_task(server.generate([3], sampling, "r"))
        while not server.thread.call(lambda: len(server.thread._generator._rows)).result():
            await asyncio.sleep(0.01)
        assert (await server.abort_all_requests())["aborted_count"] == 1
        await server.resume_generation()
        return await request

    return asyncio.run(run())


def test_a_request_cut_off_is_an_error_in_sync_mode(make_server):
    with pytest.raises(GenerationError, match="cut off after"):
        cut_off(make_server())


def test_a_request_cut_off_is_given_back_to_be_resumed_in_asynchronous_modes(make_server):
    output = cut_off(make_server(engine_kwargs={"hf_cpu": {"trainer_mode": "colocate_async"}}))
    assert output.stop_reason == "aborted"
    assert len(output.token_ids) == len(output.log_probs) < 500


def test_what_it_cannot_do_is_refused(make_server):
    server = make_server()
    with pytest.raises(ConfigError, match="text only"):
        asyncio.run(server.generate([3], {}, "r", image_data=["image"]))
    with pytest.raises(ConfigError, match="does not support the sampling parameters"):
        ask(server, [3], min_p=0.2)
    with pytest.raises(ConfigError, match="logprobs_mode"):
        make_server(logprobs_mode="raw_logits")
