"""Our trainers: what they override is still what it was, and what is missing is said at start-up."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls, trainer_base
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from tests import fresh
from tests.composed import composed
from tests.verl_source import only_tested_version, source_hash
from verl_mtgrpo.credit import ESTIMATORS, Estimator, register_estimator
from verl_mtgrpo.errors import CompatibilityError, ConfigError
from verl_mtgrpo.integration.advantage.fields import MODES, provide, take
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.integration.rollout.workers import TurnAgentLoopManager
from verl_mtgrpo.integration.trainer.buffer import TurnBuffer, TurnReplayBuffer
from verl_mtgrpo.integration.trainer.storage import SafeStorage
from verl_mtgrpo.integration.trainer.trainer import GUARD_KEYS, _TurnTrainer, guards_of
from verl_mtgrpo.integration.trainer.turn_critic import TurnCritic

pytestmark = pytest.mark.compose


def config(*overrides: str, preset: str = "turn_gae"):
    return composed(*overrides, preset=preset)


RELIED_ON = {
    # stores trainer_mode and looks its settings up by it
    "PPOTrainer.__init__": (trainer_base.PPOTrainer.__init__, "6f938d77859b66ae"),
    # chooses its replay buffer by trainer_mode, and its arguments are the buffer's attributes of the same names
    "PPOTrainer._build_replay_buffer": (trainer_base.PPOTrainer._build_replay_buffer, "c6c5bd0783311ea3"),
    # stores the manager of rollout workers, and nothing waited for the replay buffer before
    "PPOTrainer.fit": (trainer_base.PPOTrainer.fit, "7d83a81c2e62979f"),
    # rows in the order of batch.keys, right padded with 0, and one call of the estimator in this thread
    "PPOTrainer._compute_advantage": (trainer_base.PPOTrainer._compute_advantage, "2a4a2aa4a475b228"),
    # samples each validation batch by the replay buffer, clears it, and dumps at the end, rows named in "uid"
    "PPOTrainer._validate": (trainer_base.PPOTrainer._validate, "f1d58a70e91d7883"),
    # statistics of what it is given, named val-core or val-aux, and the number of turns
    "PPOTrainer._val_metrics_update": (trainer_base.PPOTrainer._val_metrics_update, "8cecd418b5011bfc"),
    # decodes the rows of batch.keys, sorts them by these names, and names each in "uid"
    "PPOTrainer._log_rollout_data": (trainer_base.PPOTrainer._log_rollout_data, "c1fa53a46df397cb"),
    # writes every column of reward_extra_infos_dict that has a value for each row
    "PPOTrainer._dump_generations": (trainer_base.PPOTrainer._dump_generations, "be2e012a287c9257"),
    "PPOTrainer._write_generations": (trainer_base.PPOTrainer._write_generations, "9dac31a75a9c687e"),
    # keeps what failed in _dump_futures, where it is looked for, and raises it here and in _shutdown_dump_executor
    "PPOTrainer._shutdown_dump_executor": (trainer_base.PPOTrainer._shutdown_dump_executor, "8746f0f382291534"),
    # lets the critic read the batch, and keeps its values before each token
    "PPOTrainer._compute_values": (trainer_base.PPOTrainer._compute_values, "20df171612279e37"),
    # gives the batch to the critic's workers with everything that it names in fields; metrics of numbers
    "PPOTrainer._update_critic": (trainer_base.PPOTrainer._update_critic, "1b2879bec14681ba"),
    # sets the number of the step, 0 without a checkpoint, and the folder that resumed_folder returns
    "PPOTrainer._load_checkpoint": (trainer_base.PPOTrainer._load_checkpoint, "bb446d77c48ac6cc"),
    # sets verl's loss of the critic before on_init_end
    "PPOTrainer._setup": (trainer_base.PPOTrainer._setup, "248aee497276b816"),
    # writes the number of the last checkpoint when everything else of it is written
    "PPOTrainer._save_checkpoint": (trainer_base.PPOTrainer._save_checkpoint, "8c2435b577e54f19"),
    # hands everything but GRPO on, all rows in their order
    "compute_advantage_for_multi_trajectories": (compute_advantage_for_multi_trajectories, "d973cc8aec79bc3d"),
}


@only_tested_version
@pytest.mark.parametrize("name", RELIED_ON)
def test_what_the_trainers_rely_on_is_as_it_was_when_they_were_written(name):
    function, expected = RELIED_ON[name]
    assert source_hash(function) == expected, f"verl's {name} has changed: read it, then update trainer/trainer.py"


def test_no_more_is_overridden_than_what_is_guarded_above():
    ours = {name for name, value in vars(_TurnTrainer).items() if callable(value) or isinstance(value, property)}
    assert ours == {
        *("__init__", "trainer_mode", "_compute_advantage", "_log_rollout_data", "_dump_generations"),
        *("_validate", "_val_metrics_update", "_build_replay_buffer", "fit"),
    }


@pytest.mark.parametrize(("ours", "stock"), MODES.items())
def test_each_extends_verls_trainer_of_its_mode_and_nothing_comes_between(ours, stock):
    trainer, parent = get_trainer_cls(ours), get_trainer_cls(stock)
    assert trainer.__mro__[1:5] == (_TurnTrainer, SafeStorage, TurnCritic, parent)
    assert trainer.stock_mode == stock
    # verl's own class of the mode does not compute advantages or write rollouts in another way.
    unchanged = ("_build_replay_buffer", "fit", "_compute_advantage", "_log_rollout_data", "_dump_generations")
    for name in (*unchanged, "_write_generations", "_compute_values", "_update_critic", "_load_checkpoint"):
        assert getattr(parent, name) is getattr(trainer_base.PPOTrainer, name)
    # Nor do their constructors ask for more.
    assert list(inspect.signature(parent.__init__).parameters) == ["self", "config"]


SEPARATE = [
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    "data.train_batch_size=48",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "trainer.v1.separate_async.parameter_sync_step=3",
]


@pytest.mark.parametrize(
    ("mode", "overrides", "buffer", "sync_step"),
    [
        ("sync", ["+trainer.v1.sync.parameter_sync_step=2"], "TurnReplayBuffer", 2),
        ("colocate_async", [], "TurnReplayBufferAsync", 1),
        ("separate_async", SEPARATE, "TurnReplayBufferAsync", 3),
    ],
)
def test_verls_constructor_sees_verls_name_of_the_mode(mode, overrides, buffer, sync_step):
    trainer = get_trainer_cls(f"mtgrpo_{mode}")(config(f"trainer.v1.trainer_mode=mtgrpo_{mode}", *overrides))
    assert trainer.trainer_mode == mode
    assert trainer.replay_buffer.trainer_mode == mode
    assert type(trainer.replay_buffer).__name__ == buffer
    assert trainer.parameter_sync_step == sync_step, "read below verl's name of the mode"
    assert trainer.use_critic


def buffer_of(*overrides: str, preset: str = "mt_grpo") -> Any:
    run = config("actor_rollout_ref.rollout.n=4", *overrides, preset=preset)
    return get_trainer_cls("mtgrpo_sync")(run).replay_buffer


FILTER = ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=outcome/em"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"poll_interval": 0.2, "filter_groups_metric": None, "sync_refill_failed_groups": False}),
        (["trainer.v1.sampler.sampler_kwargs.poll_interval=3"], {"poll_interval": 3.0}),
        (["trainer.v1.sampler.sampler_kwargs.poll_interval=null"], {"poll_interval": 2.0}),  # verl's own
        (
            [*FILTER, "data.train_batch_size=6"],
            {"filter_groups_metric": "outcome/em", "train_batch_size": 6, "gen_batch_size": 1},
        ),
        ([*FILTER, "algorithm.filter_groups.max_inflight_gen_batches=3"], {"max_inflight_gen_batches": 3}),
        (
            ["trainer.v1.sampler.sync_refill_failed_groups=True"],
            {"sync_refill_failed_groups": True, "gen_batch_size": 1, "filter_groups_metric": None},
        ),
        (["trainer.v1.sampler.max_off_policy_threshold=5"], {"max_off_policy_threshold": 5}),
    ],
)
def test_the_buffer_is_built_with_verls_settings_and_ours(overrides, expected):
    buffer = buffer_of(*overrides)
    assert {name: getattr(buffer, name) for name in expected} == expected
    assert (buffer.estimator, buffer.rollouts_per_prompt, buffer._guard.timeout_s) == ("mt_grpo", 4, 1800.0)
    assert buffer.refill_fn.__name__ == "_add_prompts_to_generate"


def test_other_estimators_and_no_timeout():
    buffer = buffer_of("trainer.v1.sampler.sampler_kwargs.stall_timeout_s=null", preset="grpo_mr")
    assert (buffer.estimator, buffer._guard.timeout_s) == ("grpo", None)


def test_filtering_without_a_metric_stops_the_trainer():
    with pytest.raises(ConfigError, match=r"filter_groups.enable=True without a metric; set .*metric to turn_pattern"):
        buffer_of(FILTER[0], "algorithm.filter_groups.metric=null")


SAMPLER = "trainer.v1.sampler.custom_sampler"
CUSTOM = [f"{SAMPLER}.path=pkg://tests.gpu.stock", f"{SAMPLER}.name=OftenLookingReplayBuffer"]


def test_a_custom_sampler_is_verls_business():
    buffer = buffer_of(*CUSTOM)
    assert type(buffer).__name__ == "OftenLookingReplayBuffer" and not isinstance(buffer, TurnBuffer)


class OursChanged(TurnReplayBuffer):
    """A custom sampler derived from our buffer, as a user may try."""


@pytest.mark.parametrize("mode", ["sync", "mtgrpo_sync"])
def test_a_custom_sampler_of_our_own_buffer_is_refused(mode):
    named = f"{SAMPLER}.path=pkg://{__name__}", f"{SAMPLER}.name=OursChanged", f"trainer.v1.trainer_mode={mode}"
    with pytest.raises(ConfigError, match=r"names OursChanged, .*without the estimator.*derive your class from verl's"):
        get_trainer_cls(mode)(config(*named, preset="mt_grpo"))


@pytest.mark.parametrize(("kind", "sampling", "given"), [
    (TurnAgentLoopManager, [], True),
    (AgentLoopManagerTQ, [], False),  # verl's manager replaces nothing
    (TurnAgentLoopManager, CUSTOM, False),  # and a custom sampler asks for nothing
])  # fmt: skip
def test_the_buffer_is_given_our_manager_before_verl_trains(kind, sampling, given, monkeypatch):
    trainer = get_trainer_cls("mtgrpo_sync")(config(*sampling, preset="mt_grpo"))
    manager, trained = object.__new__(kind), []

    def fit(trainer: Any, manager: Any) -> None:
        trained.append((manager, getattr(trainer.replay_buffer, "manager", None)))

    monkeypatch.setattr(trainer_base.PPOTrainer, "fit", fit)
    trainer.fit(manager)
    assert trained == [(manager, manager if given else None)]


@pytest.mark.process
@pytest.mark.parametrize("module", ["rollout.workers", "trainer.buffer", "trainer.storage"])
def test_what_the_trainer_imports_may_be_imported_first(module):
    """As in a rollout worker, which unpickles its reward workers: verl's trainers come with it, and ours with them."""
    asked = fresh.python(
        f"import verl_mtgrpo.integration.{module}, sys; print('verl_mtgrpo.integration.trainer.trainer' in sys.modules)"
    )
    assert asked.stdout.strip().endswith("True" if module != "trainer.storage" else "False"), asked.stderr


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_verls_own_trainer_takes_the_presets_with_its_own_buffer(mode):
    run = config(f"trainer.v1.trainer_mode={mode}", "actor_rollout_ref.rollout.n=4", preset="mt_grpo")
    check_run(run)
    assert type(get_trainer_cls(mode)(run).replay_buffer).__module__ == "verl.trainer.ppo.v1.replay_buffer"


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
@pytest.mark.parametrize("preset", ["turn_gae", "bilevel_gae"])
def test_under_verls_own_trainer_the_run_stops_before_the_first_rollout(preset, mode):
    message = (
        rf"adv_estimator={preset} needs values, .*\(trainer mode: {mode}\); set trainer.v1.trainer_mode=mtgrpo_{mode}"
    )
    with pytest.raises(ConfigError, match=message):
        check_run(config(f"trainer.v1.trainer_mode={mode}", preset=preset))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("critic.enable=False", "needs values, which this run does not have; set critic.enable=True"),
        ("critic.enable=null", "needs values, which this run does not have"),
        ("algorithm.lam=0.95", r"algorithm.lam=0.95 are read by verl's gae only; .*set algorithm.turn.discount"),
        ("algorithm.gamma=0.9", "algorithm.gamma=0.9"),
        ("+algorithm.turn.gamma=0.9", r"unknown keys \['gamma'\]; known .*discount"),
    ],
)
def test_a_run_without_what_the_estimator_needs_does_not_start(override, message):
    with pytest.raises(ConfigError, match=message):
        check_run(config(override))
    with pytest.raises(ConfigError, match=message):  # nor before a model is loaded, whatever scores the rollouts
        get_trainer_cls("mtgrpo_sync")(config(override))


def asks_for_much(token_level_rewards, response_mask, index, entropies, rollout_log_probs, ref_log_prob, transcript):
    return token_level_rewards, token_level_rewards


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.rollout_correction.bypass_mode=True", "needs entropies, .*bypass_mode=False"),
        ("actor_rollout_ref.rollout.calculate_log_probs=False", "needs rollout_log_probs, .*calculate_log_probs=True"),
        ("algorithm.use_kl_in_reward=False", "needs ref_log_prob, .*use_kl_loss=True or"),
    ],
)
def test_every_field_that_verl_may_not_compute_is_checked(override, message, monkeypatch):
    record = Estimator(asks_for_much, "much", "", compares_rollouts=True, divides_by_group_std=False)
    monkeypatch.setitem(ESTIMATORS, "asks_for_much", record)
    enough = ["actor_rollout_ref.rollout.calculate_log_probs=True", "algorithm.use_kl_in_reward=True"]
    run = ["algorithm.adv_estimator=asks_for_much", "~algorithm.turn", "actor_rollout_ref.rollout.n=2", *enough]
    check_run(config(*run))
    with pytest.raises(ConfigError, match=message):
        check_run(config(*run, override))


def test_an_estimator_of_ones_own(monkeypatch):
    monkeypatch.setattr("verl_mtgrpo.credit.registry.ESTIMATORS", estimators := dict(ESTIMATORS))
    assert register_estimator(asks_for_much) is asks_for_much
    assert register_estimator(asks_for_much) is asks_for_much, "loading a module twice does no harm"
    record = estimators["asks_for_much"]
    assert record.function is asks_for_much
    assert record.fields == ("entropies", "rollout_log_probs", "ref_log_prob", "transcript")

    def turn_gae(token_level_rewards, response_mask, index):
        return token_level_rewards, token_level_rewards

    with pytest.raises(ConfigError, match="there is an estimator turn_gae already"):
        register_estimator(turn_gae)
    with pytest.raises(ConfigError, match="the estimator <lambda> takes"):
        register_estimator(lambda rewards, mask, index: (rewards, rewards))


def test_guards_name_settings_that_exist():
    run = config(preset="mt_grpo")
    metrics = ("guard/turn_rewarded", "guard/zero_variance_groups", "tool/calls", "tool/failures", "tool/used")
    metrics += ("outcome/reward", "guard/paid")
    guards = guards_of(run)
    fired = [guards.look(dict.fromkeys(metrics, 0.5))[0] for _ in range(5)][-1]  # one of them looks back
    assert {f"guard/{name}" for name in GUARD_KEYS} <= set(fired)
    for node, _, name in (key.rpartition(".") for keys in GUARD_KEYS.values() for key in keys):
        assert name in OmegaConf.select(run, node)


def test_fields_are_there_for_one_call_only():
    with provide({"values": 1, "transcript": 2}):
        assert take("turn_gae", ("values",)) == {"values": 1}
    with pytest.raises(ConfigError, match="turn_gae needs values"):
        take("turn_gae", ("values",))
    assert take("mt_grpo", ()) == {}


def test_a_verl_that_no_longer_calls_the_estimator_there_is_noticed():
    with provide({}):
        pass
    with (
        pytest.raises(CompatibilityError, match="without a call of the estimator that needs values"),
        provide({"values": 1}),
    ):
        pass
    with pytest.raises(ZeroDivisionError), provide({"values": 1}):  # an error inside is not covered up
        1 / 0  # noqa: B018
