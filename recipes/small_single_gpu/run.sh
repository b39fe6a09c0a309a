#!/usr/bin/env bash
# A model of 0.5 to 1.5 billion parameters on one GPU of 24 to 80 GB. See README.md here.
#
#   bash recipes/small_single_gpu/run.sh [mt_grpo|turn_rloo|grpo_or|grpo_mr] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/small_single_gpu/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(mt_grpo turn_rloo grpo_or grpo_mr)  # the first is the default
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-0.5B-Instruct}
DATA=${DATA:-$PWD/data/questions}  # made by: mtgrpo data
OFFLOAD=${OFFLOAD:-False}          # True: optimizer and parameters wait in main memory (1.5B on 24 GB)
export MTGRPO_INDEX=${MTGRPO_INDEX:-$PWD/data/index}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset=paper_v1    # without +, so that Hydra stops if it did not find the groups

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2  # one search, then the answer

    $actor.optim.lr=1e-6
    data.train_batch_size=32
    $actor.ppo_mini_batch_size=32
    $rollout.n=8
    data.max_prompt_length=512
    data.max_response_length=1024

    $actor.ppo_max_token_len_per_gpu=8192
    $actor.fsdp_config.param_offload="$OFFLOAD"
    $actor.fsdp_config.optimizer_offload="$OFFLOAD"
    $rollout.gpu_memory_utilization=0.4
    $rollout.agent.num_workers=2   # processes on the host; 8 by default
    reward.num_workers=2
    trainer.n_gpus_per_node=1

    trainer.total_training_steps=200
    trainer.test_freq=20
    trainer.project_name=mtgrpo_small
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
