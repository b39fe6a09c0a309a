"""The config group composes onto verl's own trainer config and says what the CPU needs."""

import pytest

from tests.composed import SEARCHPATH, composed
from tests.tiny_model import save_model

pytest.importorskip("verl")

pytestmark = pytest.mark.compose


def on_cpu(*overrides):
    return composed(SEARCHPATH, "+mtgrpo_cpu=default", *overrides)


@pytest.fixture(scope="module")
def config():
    return on_cpu()


def test_values_a_run_depends_on(config):
    assert config.trainer.device == "cpu"
    assert config.trainer.n_gpus_per_node == 1
    assert "wandb" not in config.trainer.logger
    assert config.actor_rollout_ref.rollout.name == "hf_cpu"
    assert config.actor_rollout_ref.rollout.engine_kwargs.hf_cpu.trainer_mode == "sync"
    assert config.data.dataloader_num_workers == 0


@pytest.mark.parametrize(
    "engine", ["actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp"]
)
def test_every_engine_trains_in_float32_without_compiling(config, engine):
    from omegaconf import OmegaConf

    chosen = OmegaConf.select(config, engine)
    assert chosen.strategy == "fsdp2"
    assert set(chosen.mixed_precision.values()) == {"fp32"}
    assert chosen.model_dtype == "fp32"
    assert chosen.use_torch_compile is False


@pytest.mark.parametrize("model", ["actor_rollout_ref.model", "critic.model"])
def test_every_model_uses_sdpa_on_padded_batches(config, model):
    from omegaconf import OmegaConf

    chosen = OmegaConf.select(config, model)
    assert chosen.override_config.attn_implementation == "sdpa"
    assert chosen.use_remove_padding is False
    assert chosen.enable_gradient_checkpointing is False


def test_one_override_makes_two_slots_and_the_mode_reaches_the_server():
    config = on_cpu("trainer.n_gpus_per_node=2", "trainer.v1.trainer_mode=colocate_async")
    assert config.ray_kwargs.ray_init.num_gpus == 2
    assert config.actor_rollout_ref.rollout.n_gpus_per_node == 2
    assert config.actor_rollout_ref.rollout.engine_kwargs.hf_cpu.trainer_mode == "colocate_async"


def test_verl_accepts_it(tmp_path):
    """verl's own check and its config classes, which refuse unknown keys."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    model = save_model(tmp_path)
    config = on_cpu(
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.rollout.n=4",
        f"actor_rollout_ref.model.path={model}",
        f"critic.model.path={model}",
    )
    validate_config(config, need_reference_policy(config), need_critic(config))
    for part in (config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor, config.critic):
        omega_conf_to_dataclass(part)
