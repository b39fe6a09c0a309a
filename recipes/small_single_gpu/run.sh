#!/usr/bin/env bash
# A model of 0.5 to 1.5 billion parameters on one GPU of 24 to 80 GB. See README.md here.
#
#   bash recipes/small_single_gpu/run.sh [mt_grpo|turn_rloo|grpo_or|grpo_mr] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/small_single_gpu/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail
RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$RECIPE/../launch.sh"

METHOD=mt_grpo
is_override "${1-}" || { METHOD=${1:-$METHOD}; [ $# -eq 0 ] || shift; }
one_of "$METHOD" mt_grpo turn_rloo grpo_or grpo_mr

MODEL=${MODEL:-Qwen/Qwen2.5-0.5B-Instruct}
DATA=${DATA:-$PWD/data/questions}  # of: mtgrpo data ...
OFFLOAD=${OFFLOAD:-False}          # True: optimizer and parameters wait in main memory (1.5B on 24 GB)
export MTGRPO_INDEX=${MTGRPO_INDEX:-$PWD/data/index}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]'
    "+mtgrpo=$METHOD"
    # Without + on purpose: if the group above was not found, Hydra knows no such key and stops.
    reward.turn.preset=paper_v1

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.train_batch_size=32
    data.max_prompt_length=512
    data.max_response_length=1024

    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.model.enable_gradient_checkpointing=True
    $actor.optim.lr=1e-6
    $actor.ppo_mini_batch_size=32
    $actor.use_dynamic_bsz=True
    $actor.ppo_max_token_len_per_gpu=8192
    $actor.fsdp_config.param_offload="$OFFLOAD"
    $actor.fsdp_config.optimizer_offload="$OFFLOAD"

    $rollout.name=vllm
    $rollout.gpu_memory_utilization=0.4
    $rollout.tensor_model_parallel_size=1
    $rollout.n=8
    $rollout.agent.num_workers=2   # processes on the host; 8 by default
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2  # one search, then the answer
    reward.num_workers=2

    trainer.n_gpus_per_node=1
    trainer.nnodes=1
    trainer.total_epochs=100       # the number of steps ends the run
    trainer.total_training_steps=200
    trainer.test_freq=20
    trainer.save_freq=100
    'trainer.logger=[console,file]'
    trainer.project_name=mtgrpo_small
    trainer.experiment_name="$METHOD"
)
launch "${overrides[@]}" "$@"
