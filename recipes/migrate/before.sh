#!/usr/bin/env bash
# A search agent trained by stock verl: GRPO, verl's tool agent, your own tool and reward function. Nothing of
# verl-mtgrpo is in here. See README.md here; after.sh is this command with turn-level credit.
#
#   bash recipes/migrate/before.sh [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/migrate/before.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
MODEL=${MODEL:-Qwen/Qwen2.5-3B-Instruct}
DATA=${DATA:-$PWD/data/questions}
GPUS=${GPUS:-8}
export PASSAGES=${PASSAGES:-$HERE/passages.txt}  # what tools.py searches

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
overrides=(
    algorithm.adv_estimator=grpo
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.train_batch_size=128
    data.max_prompt_length=1024
    data.max_response_length=2048
    actor_rollout_ref.model.path="$MODEL"
    $actor.optim.lr=1e-6
    $actor.ppo_mini_batch_size=64
    $actor.use_dynamic_bsz=True
    $rollout.name=vllm
    $rollout.n=8
    $rollout.agent.default_agent_loop=tool_agent
    $rollout.multi_turn.enable=True
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2
    $rollout.multi_turn.function_tool_path="$HERE/tools.py"
    reward.custom_reward_function.path="$HERE/reward.py"
    reward.custom_reward_function.name=compute_score
    trainer.n_gpus_per_node="$GPUS"
    trainer.total_training_steps=200
    trainer.test_freq=20
    'trainer.logger=[console,file]'
    trainer.project_name=search_agent
    trainer.experiment_name=grpo
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$HERE/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
