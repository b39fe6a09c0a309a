"""Rows of :mod:`.test_start` for E26 and E27: names, values, and essential settings of a config group."""

from __future__ import annotations

from tests.doctor.setups import TURNS
from tests.regressions.start_setups import ESTIMATOR, LOSS, MODE, fails, is_sound, own_tool, warns

NAMES = [
    # ---- E26: names
    fails(
        "E26",
        "row 4",
        "estimator",
        r"adv_estimator=mtgrpo does not exist: .*did you mean mt_grpo\?",
        f"{ESTIMATOR}=mtgrpo",
    ),
    fails("E26", "row 4", "estimator", r"adv_estimator=mt-grpo .*did you mean mt_grpo\?", f"{ESTIMATOR}=mt-grpo"),
    fails("E26", "row 4", "estimator", r"adv_estimator=MT_GRPO .*did you mean mt_grpo\?", f"{ESTIMATOR}=MT_GRPO"),
    fails(
        "E26",
        "row 5",
        "estimator",
        r"=mine_alone does not exist.*VERL_USE_EXTERNAL_MODULES \(now: not set\)",
        f"{ESTIMATOR}=mine_alone",
    ),
    warns(
        "E26",
        "sound: the trainer's process loads the module, this one does not",
        "estimator",
        r"=mine_alone does not exist: .*\(in this process; another one of the run loads more\)",
        f"{ESTIMATOR}=mine_alone",
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES=mine",
    ),
    warns(
        "E26",
        "sound: a cluster that runs already may have been started with the module",
        "estimator",
        r"=mine_alone does not exist",
        f"{ESTIMATOR}=mine_alone",
        env={"RAY_ADDRESS": "10.0.0.1:6379"},
    ),
    fails(
        "E26",
        "row 17",
        "estimator",
        r"loss_mode=turn_gspoo does not exist.*did you mean turn_gspo\?",
        f"{LOSS}=turn_gspoo",
    ),
    is_sound("E26", "one of verl's own losses", "estimator", "mt_grpo", f"{LOSS}=gspo"),
    warns(
        "E26",
        "sound: the actor imports model.external_lib",
        "estimator",
        r"loss_mode=mine does not exist",
        f"{LOSS}=mine",
        "actor_rollout_ref.model.external_lib=mine",
    ),
    fails(
        "E26", "row 18", "estimator", r"trainer_mode=mtgrpo-sync .*did you mean mtgrpo_sync\?", f"{MODE}=mtgrpo-sync"
    ),
    fails(
        "E26",
        "kind of row 18",
        "estimator",
        r"reward_manager.name=mtgrop does not exist.*did you mean mtgrpo\?",
        "reward.reward_manager.name=mtgrop",
    ),
    # ---- E26: values
    fails(
        "E26", "row 13", "estimator", r"scale is 'mean', expected one of \('std', 'none'\)", "algorithm.turn.scale=mean"
    ),
    fails("E26", "row 13", "estimator", r"missing_turn is 'skip', expected one of", "algorithm.turn.missing_turn=skip"),
    fails("E26", "row 13", "estimator", r"epsilon is -1.0, expected a finite number >= 0", "algorithm.turn.epsilon=-1"),
    fails(
        "E26",
        "kind of row 13",
        "estimator",
        r"discount is -0.5, expected a finite number >= 0",
        "algorithm.turn.discount=-0.5",
    ),
    fails("E26", "kind of row 13", "estimator", r"discount is nan", "algorithm.turn.discount=nan"),
    fails("E26", "kind of row 13: NaN advantages", "estimator", r"turn_coef is nan", "algorithm.turn.turn_coef=nan"),
    fails(
        "E26",
        "kind of row 13: 1e300 squared",
        "estimator",
        r"advantages that are NaN or infinite",
        "algorithm.turn.discount=1e300",
    ),
    fails(
        "E26",
        "kind of row 13",
        "estimator",
        r"lam is 1.5, expected a number from 0 to 1",
        "algorithm.turn.lam=1.5",
        preset="turn_gae",
    ),
    fails(
        "E26",
        "kind of row 13",
        "estimator",
        r"token_discount is -1.0",
        "algorithm.turn.token_discount=-1",
        preset="bilevel_gae",
    ),
    fails("E26", "kind of row 13", "estimator", r"discount is -1.0", "algorithm.turn.discount=-1", preset="gtpo"),
    fails(
        "E26",
        "kind of row 13",
        "estimator",
        r"discount is -1.0",
        "algorithm.turn.discount=-1",
        preset="turn_reinforce_pp",
    ),
    fails("E26", "kind of row 13", "estimator", r"scale is 'mean'", "algorithm.turn.scale=mean", preset="turn_rloo"),
    fails("E26", "kind of row 13", "estimator", r"epsilon is -1.0", "algorithm.turn.epsilon=-1", preset="mt_grpo_v1"),
    fails(
        "E26",
        "row 14",
        "estimator",
        r"turn_coef=-1 is below 0: .*on_purpose=\[algorithm.turn.turn_coef\]",
        "algorithm.turn.turn_coef=-1",
    ),
    is_sound(
        "E26",
        "asked for",
        "estimator",
        "turn_coef -1",
        "algorithm.turn.turn_coef=-1",
        "trainer.turn.on_purpose=[algorithm.turn.turn_coef]",
    ),
    fails(
        "E26",
        "kind of row 14",
        "estimator",
        r"repeat_penalty=-0.1 is below 0: .*would be paid for",
        "reward.turn.repeat_penalty=-0.1",
    ),
    fails("E26", "kind of row 13", "rewards", r"repeat_penalty is nan", "reward.turn.repeat_penalty=nan"),
    fails(
        "E26",
        "row 15",
        "rewards",
        r"outcome is 'compute_scores', .*did you mean compute_score\?",
        "reward.turn.outcome=compute_scores",
    ),
    fails(
        "E26",
        "kind of row 15",
        "watch",
        r"on_purpose\[0\] is 'adv_estimator', .*did you mean algorithm.adv_estimator\?",
        "trainer.turn.on_purpose=[adv_estimator]",
    ),
    fails("E26", "kind of row 13", "watch", r"guards.tool_use is nan", "trainer.turn.guards.tool_use=nan"),
    fails(
        "E26", "kind of row 13", "watch", r"poll_interval is -1", "trainer.v1.sampler.sampler_kwargs.poll_interval=-1"
    ),
    fails(
        "E26",
        "row 29",
        "models",
        r"critic.model.path=/no/critic does not exist",
        "critic.model.path=/no/critic",
        preset="mt_ppo",
    ),
    is_sound(
        "E26", "verl asks the hub for it", "estimator", "gae", "critic.model.path=Qwen/Qwen2.5-0.5B", preset="mt_ppo"
    ),
    is_sound("E26", "no critic, so its path is read by nobody", "estimator", "mt_grpo", "critic.model.path=/no/critic"),
    warns(
        "E26",
        "row 27",
        "turns",
        r"max_tool_response_length=5: verl cuts every tool result",
        f"{TURNS}.max_tool_response_length=5",
        make=own_tool,
    ),
    # ---- E27: essential settings of a group, overridden
    fails(
        "E27",
        "row 7",
        "estimator",
        r"\+mtgrpo=mt_ppo stands for algorithm.adv_estimator=gae, but algorithm.adv_estimator=grpo .*"
        r"\+mtgrpo=grpo_mr or grpo_or.*on_purpose=\[algorithm.adv_estimator\]",
        f"{ESTIMATOR}=grpo",
        preset="mt_ppo",
    ),
    fails(
        "E27",
        "row 8",
        "estimator",
        r"mt_ppo stands for .*=gae, but .*=mt_grpo .*\+mtgrpo=mt_grpo\)",
        f"{ESTIMATOR}=mt_grpo",
        preset="mt_ppo",
    ),
    fails(
        "E27",
        "row 9",
        "estimator",
        r"grpo_or stands for .*=grpo, but .*=mt_grpo",
        f"{ESTIMATOR}=mt_grpo",
        preset="grpo_or",
    ),
    fails("E27", "row 10", "estimator", r"mt_grpo stands for .*=mt_grpo, but .*=grpo", f"{ESTIMATOR}=grpo"),
    fails(
        "E27",
        "the issue: mt_grpo with a critic",
        "estimator",
        r"critic.enable=True .*a critic would be trained but not used",
        "critic.enable=True",
    ),
    fails(
        "E27",
        "kind of row 7: a critic of verl's switched off",
        "estimator",
        r"adv_estimator=gae learns from a critic, but critic.enable=False; set",
        "critic.enable=False",
        preset="mt_ppo",
    ),
    fails(
        "E27",
        "kind of row 9: mt_ppo paid as ppo_mr",
        "estimator",
        r"reward.turn.pay=merged .*\(\+mtgrpo=ppo_mr\)",
        "reward.turn.pay=merged",
        preset="mt_ppo",
    ),
    is_sound(
        "E27",
        "asked for",
        "estimator",
        "rloo",
        f"{ESTIMATOR}=rloo",
        "trainer.turn.on_purpose=[algorithm.adv_estimator]",
        preset="grpo_or",
    ),
    is_sound(
        "E27",
        "verl: the same function, vectorised",
        "estimator",
        "grpo_vectorized",
        f"{ESTIMATOR}=grpo_vectorized",
        preset="grpo_or",
    ),
    is_sound(
        "E27", "migrate/after.sh: the group's own value, said again", "estimator", "mt_grpo", f"{ESTIMATOR}=mt_grpo"
    ),
]
