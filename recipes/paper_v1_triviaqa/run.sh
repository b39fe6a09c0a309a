#!/usr/bin/env bash
# The paper's first experiments: Qwen2.5-7B learns to answer TriviaQA with one search. See README.md here.
#
#   bash recipes/paper_v1_triviaqa/run.sh [mt_grpo_v1|mt_grpo|grpo_or|grpo_mr] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/paper_v1_triviaqa/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail
RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$RECIPE/../launch.sh"

METHOD=mt_grpo_v1
is_override "${1-}" || { METHOD=${1:-$METHOD}; [ $# -eq 0 ] || shift; }
one_of "$METHOD" mt_grpo_v1 mt_grpo grpo_or grpo_mr

MODEL=${MODEL:-Qwen/Qwen2.5-7B}
DATA=${DATA:-$PWD/data/triviaqa}  # of: mtgrpo data ... --format mtgrpo_xml
GPUS=${GPUS:-8}
export MTGRPO_INDEX=${MTGRPO_INDEX:-$PWD/data/wiki18/bm25}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]'
    "+mtgrpo=$METHOD"
    # Without + on purpose: if the group above was not found, Hydra knows no such key and stops.
    reward.turn.preset=paper_v1

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.max_prompt_length=1024
    data.max_response_length=1024  # tool results count too
    data.train_batch_size=16       # questions; x 21 rollouts = 336 = 12 x 4 accumulation steps x 7 GPUs of the paper

    actor_rollout_ref.model.path="$MODEL"
    $actor.optim.lr=1e-6
    $actor.optim.lr_warmup_steps=20
    $actor.optim.clip_grad=0.1
    $actor.ppo_mini_batch_size=16
    $actor.ppo_epochs=2            # the paper's iterations
    $actor.use_kl_loss=False       # beta = 0
    $actor.use_dynamic_bsz=True
    $actor.ppo_max_token_len_per_gpu=16384

    $rollout.name=vllm
    $rollout.gpu_memory_utilization=0.6
    $rollout.tensor_model_parallel_size=1
    $rollout.n=21
    $rollout.multi_turn.format=mtgrpo_xml
    $rollout.multi_turn.tool_config_path="$RECIPE/search_tool.yaml"
    $rollout.multi_turn.max_assistant_turns=2  # one search, then the answer

    trainer.n_gpus_per_node="$GPUS"
    trainer.nnodes=1
    trainer.total_epochs=100       # the number of steps ends the run
    trainer.total_training_steps=300
    trainer.test_freq=25
    trainer.save_freq=100
    'trainer.logger=[console,file]'
    trainer.project_name=mtgrpo_paper_v1
    trainer.experiment_name="$METHOD"
)
launch "${overrides[@]}" "$@"
