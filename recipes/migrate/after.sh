#!/usr/bin/env bash
# before.sh with MT-GRPO: the same command plus what stands here. See README.md here.
#
#   bash recipes/migrate/after.sh [HYDRA OVERRIDES...]
set -euo pipefail

rollout=actor_rollout_ref.rollout
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]'
    +mtgrpo=mt_grpo
    # before.sh sets these two, and a command line wins over a group: so they are said again.
    algorithm.adv_estimator=mt_grpo
    $rollout.agent.default_agent_loop=mtgrpo_tool_agent
    # The outcome stays the reward function of before.sh; the preset, paper_v1, adds what each turn earns. That function is
    # given what the model wrote, without tool results (reward.turn.solution=response: the whole response, as verl gives it).
    trainer.experiment_name=mt_grpo
)
exec bash "$(dirname "$0")/before.sh" "${overrides[@]}" "$@"
