#!/usr/bin/env bash
# ReMA (arXiv 2503.09501): a planner and a worker, played by one model, solve mathematical problems in turns. See README.md here.
#
#   bash recipes/rema/run.sh [rema] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/rema/run.sh              # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(rema)
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
DATA=${DATA:-$PWD/data/math}  # made by verl's examples/data_preprocess/math_dataset.py
GPUS=${GPUS:-8}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
roles=trainer.turn.roles
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset=tool_use       # without +, so that Hydra stops if it did not find the groups; it pays calls: none
    reward.turn.outcome=compute_score # verl's own for the data source: MATH

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/test.parquet"
    $roles.rounds=30
    $roles.names.planner.max_tokens=512
    +$roles.names.worker.max_tokens=512

    $actor.optim.lr=1e-6
    data.train_batch_size=128
    $actor.ppo_mini_batch_size=64  # 1024 rows: four updates per step
    $rollout.n=16
    data.max_prompt_length=4096
    data.max_response_length=16384  # a row has all turns of its role, and what it heard

    $actor.fsdp_config.param_offload=True
    $actor.fsdp_config.optimizer_offload=True
    trainer.n_gpus_per_node="$GPUS"

    trainer.total_training_steps=500
    trainer.test_freq=20
    trainer.project_name=mtgrpo_rema
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
