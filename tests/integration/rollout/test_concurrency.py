"""Run many rollouts of one worker against a real search service."""

from __future__ import annotations

import asyncio
import random
import re
import statistics

import pytest

pytest.importorskip("verl")

from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.utils.dataset.rl_dataset import RLHFDataset

from tests.agent_loops import SeededServer, final_answer
from tests.heartbeat import heartbeat
from tests.retrieval.services import build_index, serving
from verl_mtgrpo.demo.policy import build_tokenizer, search_call
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.search_tool import SearchTool
from verl_mtgrpo.rewards import TRANSCRIPT

pytestmark = [pytest.mark.process, pytest.mark.network, pytest.mark.compose]

ROLLOUTS = 256


class Engine(SeededServer):
    """Takes up to two seconds for a turn, like an engine that serves many rollouts."""

    async def generate(self, request_id, prompt_ids, sampling_params, **more):
        if not self.script:
            self.script = [final_answer("Velm")]
        said = await super().generate(request_id, prompt_ids, sampling_params, **more)
        await asyncio.sleep(random.Random(f"{self.seed} {len(prompt_ids)}").uniform(0.2, 2.0))
        return said


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    index = build_index(tmp_path_factory.mktemp("many") / "index", ROLLOUTS)
    with serving("serve", index, "--queue", 512) as running:
        yield running


@pytest.mark.clock
def test_256_concurrent_rollouts_get_their_own_passages_and_the_event_loop_goes_on(config, service):
    settings = config.copy()
    settings.actor_rollout_ref.rollout.prompt_length = 64
    settings.actor_rollout_ref.rollout.response_length = 2000
    settings.actor_rollout_ref.rollout.multi_turn.max_tool_response_length = 4000
    texts = [search_call("uid0123456789"), final_answer("Velm"), "House stands in the old town of Velm. Doc Title"]
    tokenizer = build_tokenizer(texts, [])

    async def go():
        tool = SearchTool({"type": "native", "index": service.url, "k": 2, "concurrency": ROLLOUTS}, None)

        def rollout(number: int):
            loop = TurnToolAgentLoop(
                trainer_config=DictConfigWrap(settings),
                server_manager=Engine(
                    number, tokenizer, [search_call(f"uid{number}{more}") for more in ("", " house")]
                ),
                tokenizer=tokenizer,
                processor=None,
                dataset_cls=RLHFDataset,
                data_config=DictConfigWrap(settings.data),
                hf_model_type="qwen2",
                tools=ToolListWrap([tool]),
            )
            return loop.run({"temperature": 1.0}, raw_prompt=[{"role": "user", "content": "Where?"}])

        await rollout(0)  # create connections and threads, which are made only once, before measuring
        stalls: list[float] = []
        beat = asyncio.create_task(heartbeat(stalls))
        outputs = await asyncio.gather(*(rollout(number) for number in range(ROLLOUTS)))
        beat.cancel()
        return outputs, stalls

    outputs, stalls = asyncio.run(go())
    for number, output in enumerate(outputs):
        transcript = output.extra_fields[TRANSCRIPT]
        calls = [call for turn in transcript.turns for call in turn.tool_calls]
        assert [call.error_kind for call in calls] == [None, None]
        for call in calls:
            assert call.documents[0].id == f"p{number}"
            assert re.findall(r"uid(\d+)", call.result)[0] == str(number)
    p99 = statistics.quantiles(stalls, n=100)[98]
    print(f"{len(stalls)} beats: stall p99 {1000 * p99:.1f} ms, longest {1000 * max(stalls):.1f} ms")
    assert p99 < 0.02
