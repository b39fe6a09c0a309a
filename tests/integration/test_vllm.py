"""Train with real vLLM on the CPU: `make test-vllm`, in the environment that `make install-vllm` creates."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

import verl.experimental.agent_loop  # noqa: F401  (first: our part of it is imported from there)

from tests.integration.runs import QUESTIONS, ROLLOUTS, make_assets, run, run_format
from verl_mtgrpo.cpu.vllm_check import check_installation
from verl_mtgrpo.demo.toy import QUESTION, SEARCH_R1
from verl_mtgrpo.integration.rollout.cutting import CuttingServer
from verl_mtgrpo.launch.failure import root_error
from verl_mtgrpo.rewards.formats import CUT_FORMATS

pytestmark = pytest.mark.vllm
STEPS = 3


def test_three_steps_of_mt_grpo_with_rollouts_by_vllm(assets: Path, tmp_path: Path) -> None:
    """Run the same checks as with the built-in server, with a high learning rate so that stale weights would show."""
    settings = ["actor_rollout_ref.actor.optim.lr=1e-3", "trainer.test_freq=3"]
    settings += [f"trainer.total_training_steps={STEPS}", f"trainer.total_epochs={STEPS}"]
    result = run(assets, tmp_path, *settings, cpu="vllm")
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2, 3}
    for step in result.steps.values():
        assert step["training/rollout_probs_diff_max"] < 1e-3, "vLLM has the weights of the actor"
        assert step["turn/1/rollouts"] == QUESTIONS * ROLLOUTS
        assert 0 < step["tool/used"] <= step["turn/2/rollouts"] / (QUESTIONS * ROLLOUTS) + 1e-6
        paid = step["turn/1/reward"] + step["turn/2/reward"] * step["turn/2/rollouts"] / step["turn/1/rollouts"]
        assert step["critic/score/mean"] == pytest.approx(paid, abs=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "val" / f"{STEPS}.jsonl").read_text().splitlines()]
    assert len(rows) == QUESTIONS * 4
    transcripts = [json.loads(row["transcript"]) for row in rows]
    assert {found["end_reason"] for found in transcripts} <= {"answered", "max_turns", "response_length"}
    searched = [found["turns"] for found in transcripts if len(found["turns"]) == 2]
    assert any("Oslo" in call["result"] for turns in searched for call in turns[0]["tool_calls"])


def test_turns_that_end_at_a_closing_tag(tmp_path: Path) -> None:
    """Train two steps in the format search_r1: rewards and actor see the turns as vLLM's stop strings cut them."""
    run_format(SEARCH_R1, tmp_path, "reward.turn.preset=paper_v2", cpu="vllm")


def test_tied_embeddings_end_the_run_with_the_reason(assets: Path, tmp_path: Path) -> None:
    tied = "+actor_rollout_ref.model.override_config.tie_word_embeddings=True"
    result = run(assets, tmp_path, tied, cpu="vllm")
    assert result.returncode != 0
    assert "tie_word_embeddings is True" in root_error(result.log)[0]


@dataclass
class Engine:
    """Return vLLM with a policy that uses search_r1, its tokenizer, and the prompt of a question."""

    llm: Any
    tokenizer: Any
    prompt: list[int]

    async def generate(self, *, sampling_params: dict[str, Any]) -> Any:
        """Like verl's server, takes and returns tokens; it also keeps vLLM's own output."""
        from verl.workers.rollout.replica import TokenOutput
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=96, temperature=0.0, logprobs=0, **sampling_params)
        (request,) = self.llm.generate([{"prompt_token_ids": self.prompt}], params, use_tqdm=False)
        (self.said,) = request.outputs
        log_probs = [of[token].logprob for token, of in zip(self.said.token_ids, self.said.logprobs, strict=True)]
        return TokenOutput(token_ids=list(self.said.token_ids), log_probs=log_probs)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Start an engine in this process as verl does, with a tokenizer (``skip_tokenizer_init=False``)."""
    check_installation()
    policy = make_assets(tmp_path_factory.mktemp("vllm"), SEARCH_R1) / "policy"
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    from transformers import AutoTokenizer
    from vllm import LLM

    llm = LLM(
        str(policy),
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        skip_tokenizer_init=False,
        logprobs_mode="processed_logprobs",
    )
    tokenizer = AutoTokenizer.from_pretrained(policy)
    question = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=False)
    # Half of the demonstrations guess an answer; this one has begun to search.
    prompt += tokenizer.encode("<think>so</think><search>", add_special_tokens=False)
    yield Engine(llm, tokenizer, prompt)
    llm.llm_engine.engine_core.shutdown()


async def _generated(engine: Engine, *, stop: bool) -> Any:
    server = CuttingServer(engine, CUT_FORMATS["search_r1"], engine.tokenizer.decode, stop=stop)
    return await server.generate(sampling_params={})


def test_vllm_stops_where_a_turn_ends(engine: Engine) -> None:
    cut = asyncio.run(_generated(engine, stop=False))
    went_on = len(engine.said.token_ids)
    stopped = asyncio.run(_generated(engine, stop=True))
    assert (engine.said.finish_reason, engine.said.stop_reason) == ("stop", "</search>")
    assert went_on > len(engine.said.token_ids), "without stop strings the policy writes the result itself"
    # Our cut finds nothing to cut off, and what it would have left without stop strings is the same.
    assert stopped.token_ids == list(engine.said.token_ids) == cut.token_ids
    assert len(stopped.log_probs) == len(stopped.token_ids)
    assert stopped.log_probs == pytest.approx(cut.log_probs, abs=1e-5)
    assert engine.tokenizer.decode(stopped.token_ids).endswith("</search>")
