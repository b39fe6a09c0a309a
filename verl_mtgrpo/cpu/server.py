"""Serve verl's rollouts on the CPU: a Ray actor that answers token requests with a Hugging Face model."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tokenizer import normalize_token_ids
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from verl_mtgrpo.cpu import ROLLOUT_NAME
from verl_mtgrpo.cpu.generation import Completion, TokenGenerator
from verl_mtgrpo.cpu.sampling import SamplingParams, end_token_ids
from verl_mtgrpo.cpu.serving import GenerationThread
from verl_mtgrpo.errors import ConfigError, GenerationError


def server_name(replica_rank: int) -> str:
    """Return the name of the Ray actor that serves a replica; the training process finds its server by it."""
    return f"{ROLLOUT_NAME}_server_{replica_rank}"


class CpuServer:
    """One replica's server. The methods are those that verl's replicas and clients call.

    Args:
        config: verl's rollout config; ``engine_kwargs.hf_cpu`` has the ``trainer_mode`` (see
            ``generate``).
        model_config: verl's model config.
        replica_rank: the number of the replica.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        self.config: RolloutConfig = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        options = self.config.engine_kwargs.get(ROLLOUT_NAME) or {}
        self._abort_is_error = options.get("trainer_mode", "sync").removeprefix("mtgrpo_") == "sync"
        self.global_steps: int | None = None
        self.max_model_len = self._check_config()
        self.model = self._build_model()
        self._weights_loaded = self.config.load_format != "dummy"
        tokenizer = self.model_config.tokenizer
        generator = TokenGenerator(
            self.model,
            end_ids=end_token_ids(self.model_config.hf_config, self.model_config.generation_config, tokenizer),
            max_rows=self.config.max_num_seqs,
            max_prefill_tokens=self.config.max_num_batched_tokens,
            decode=tokenizer.decode if tokenizer is not None else None,
            raw_log_probs=self.config.logprobs_mode == "raw_logprobs",
        )
        # Two replicas must not draw the same tokens for the same prompt.
        self.thread = GenerationThread(generator, seed=self.config.seed * 1000 + replica_rank)

    def _check_config(self) -> int:
        """Refuse what this server cannot do; returns how many tokens a row may have."""
        limit = self.model_config.hf_config.max_position_embeddings
        most = limit if self.config.max_model_len is None else self.config.max_model_len
        if most > limit:
            raise ConfigError(
                f"rollout.max_model_len is {most}, but the model's max_position_embeddings is {limit}",
                fix="lower rollout.max_model_len, or leave it null",
            )
        if self.config.logprobs_mode not in ("processed_logprobs", "raw_logprobs"):
            raise ConfigError(
                f"rollout.logprobs_mode is {self.config.logprobs_mode!r}",
                expected=f"processed_logprobs or raw_logprobs with {ROLLOUT_NAME}",
            )
        if self.model_config.lora_rank > 0 and not self.model_config.lora.get("merge", False):
            raise ConfigError(f"{ROLLOUT_NAME} does not serve LoRA adapters", fix="set model.lora.merge=True")
        return most

    def _build_model(self) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, self.config.dtype)
        hf_config = self.model_config.hf_config
        if self.config.load_format == "dummy":  # the trainer sends the weights before the first rollout
            model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
        else:
            path = self.model_config.local_path
            assert path is not None  # verl fills it in
            model = AutoModelForCausalLM.from_pretrained(path, config=hf_config, dtype=dtype)
        return model.eval().requires_grad_(False)

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
    ) -> TokenOutput:
        """Continue a prompt, with the token limit and log-probabilities of verl's vLLM server.

        ``log_probs`` is None unless ``sampling_params["logprobs"]`` is set. A request cut off by
        ``abort_all_requests`` is answered with ``stop_reason="aborted"`` in verl's asynchronous
        trainer modes, whose client resumes it. In mode ``sync`` nothing would resume it: there it raises
        GenerationError, as does every failure.
        """
        if image_data or video_data:
            raise ConfigError(f"{ROLLOUT_NAME} generates from text only, but the request contains images or video")
        if not self._weights_loaded:
            raise GenerationError("the rollout server has no weights yet: none were sent (load_format=dummy)")
        prompt_ids = normalize_token_ids(prompt_ids)
        limit = self._max_tokens(len(prompt_ids), sampling_params)
        sampling_params = {"ignore_eos": self.config.ignore_eos, **sampling_params}
        params = SamplingParams.from_verl(sampling_params, max_tokens=limit)
        completion = await asyncio.wrap_future(self.thread.submit(prompt_ids, params))
        if completion.finish == "abort" and self._abort_is_error:
            raise GenerationError(
                f"request {request_id} was cut off after {len(completion.token_ids)} tokens, and the sync "
                "trainer does not resume it"
            )
        return self._output(completion, with_log_probs=bool(sampling_params.get("logprobs")))

    def _max_tokens(self, prompt_length: int, sampling_params: dict[str, Any]) -> int:
        """Return verl's token limit: an explicit one, else what fits the response and the row; at least 1."""
        room = self.max_model_len - prompt_length
        if room < 1:
            raise ConfigError(
                f"the prompt has {prompt_length} tokens, which leaves no room to generate within "
                f"max_model_len={self.max_model_len}"
            )
        limit = sampling_params.get("max_tokens", sampling_params.get("max_new_tokens"))
        if limit is None:
            row = self.config.prompt_length + self.config.response_length
            limit = min(self.config.response_length, row - prompt_length)
        return max(1, min(limit, room))

    def _output(self, completion: Completion, *, with_log_probs: bool) -> TokenOutput:
        return TokenOutput(
            token_ids=completion.token_ids,
            log_probs=completion.log_probs if with_log_probs else None,
            stop_reason="aborted" if completion.finish == "abort" else "completed",
            num_preempted=0,
            extra_fields={"global_steps": self.global_steps, "num_cached_tokens": 0},
        )

    async def load_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None) -> None:
        """Replace all weights, between two tokens.

        Raises GenerationError, and keeps the old weights, if names or shapes do not match the model.
        """

        def load() -> None:
            _check_shapes(weights, self.model.state_dict())
            self.model.load_state_dict(weights)

        await asyncio.wrap_future(self.thread.new_weights(load))
        self._weights_loaded = True
        if global_steps is not None:
            self.global_steps = global_steps

    async def get_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights this server generates with."""
        return await asyncio.wrap_future(
            self.thread.call(lambda: {name: w.clone() for name, w in self.model.state_dict().items()})
        )

    async def set_global_steps(self, global_steps: int) -> None:
        """Remember the step that the weights belong to."""
        self.global_steps = global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        """Cut off all requests and pause; see ``generate`` for how they are answered."""
        return {"aborted_count": await asyncio.wrap_future(self.thread.abort_all(reject=reject_request))}

    async def resume_generation(self) -> None:
        """Answer requests again."""
        await asyncio.wrap_future(self.thread.resume())

    # Nothing is kept on a device between requests, so there is nothing to free or to restore.

    async def wake_up(self, tags: list[str] | None = None) -> None:
        return None

    async def sleep(self) -> None:
        return None

    async def clear_kv_cache(self) -> None:
        return None

    async def release_kv_cache(self) -> None:
        return None

    async def resume_kv_cache(self) -> None:
        return None

    async def start_profile(self, **kwargs: Any) -> None:
        return None

    async def stop_profile(self) -> None:
        return None


class CpuReplica(RolloutReplica):
    """One CpuServer per replica, on the node of the replica's training process."""

    async def launch_servers(self) -> None:
        """Start the server as a Ray actor and wait until it is ready."""
        if self.world_size != 1:
            raise ConfigError(
                f"a {ROLLOUT_NAME} replica is one process, but tensor x data x pipeline parallel size is "
                f"{self.world_size}",
                fix="set rollout.tensor_model_parallel_size=1 (and the others to 1)",
            )
        if self.is_reward_model or self.is_teacher_model:
            raise ConfigError(f"rollout name {ROLLOUT_NAME} serves only the policy, not a reward or teacher model")
        node_id = await self.workers[0].__ray_call__.remote(_node_of)
        name = server_name(self.replica_rank)
        server = self._start(name, node_id)
        await server.__ray_ready__.remote()  # a server that cannot start fails here, with its reason
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"ray-actor:{name}"  # verl's load balancer needs a unique name; no HTTP

    def _start(self, name: str, node_id: str) -> Any:
        """Start the actor: Ray's handle of it, whose type verl and Ray write differently."""
        options = {
            "name": name,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            "max_concurrency": self.max_concurrency,
        }
        return (
            ray.remote(CpuServer)
            .options(**options)
            .remote(config=self.config, model_config=self.model_config, replica_rank=self.replica_rank)
        )


def _node_of(_worker: Any) -> str:
    return ray.get_runtime_context().get_node_id()


def _check_shapes(sent: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in sent.items()}
    wanted = {name: tuple(weight.shape) for name, weight in expected.items()}
    if wrong := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        name = wrong[0]
        raise GenerationError(
            f"the trainer's weights do not fit the rollout model at {len(wrong)} places, first at {name}: got shape "
            f"{shapes.get(name, 'nothing')}",
            expected=str(wanted.get(name, "nothing")),
            fix="actor and rollout have to be the same model (actor_rollout_ref.model)",
        )
