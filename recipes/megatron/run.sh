#!/usr/bin/env bash
# Turn-level methods on verl's Megatron engine: the set of overrides that differs. See README.md here.
#
#   bash recipes/megatron/run.sh [mt_grpo|turn_rloo|mt_ppo|turn_gae] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/megatron/run.sh      # composes and checks this; then two steps on FSDP2
set -euo pipefail
RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$RECIPE/../launch.sh"

METHOD=mt_ppo
is_override "${1-}" || { METHOD=${1:-$METHOD}; [ $# -eq 0 ] || shift; }
one_of "$METHOD" mt_grpo turn_rloo mt_ppo turn_gae

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
DATA=${DATA:-$PWD/data/questions}  # of: mtgrpo data ...
GPUS=${GPUS:-8}
TP=${TP:-2}                        # GPUs that share a layer
PP=${PP:-1}                        # GPUs that share the stack of layers
export MTGRPO_INDEX=${MTGRPO_INDEX:-$PWD/data/index}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
megatron=(
    # Actor, reference and critic of verl's config become Megatron's; so `fsdp` keys are unknown from here on.
    model_engine=megatron
    $actor.megatron.tensor_model_parallel_size="$TP"    # the reference policy follows the actor
    $actor.megatron.pipeline_model_parallel_size="$PP"
    $actor.megatron.param_offload=True
    $actor.megatron.optimizer_offload=True
)
case $METHOD in
    mt_ppo | turn_gae)
        rollouts=1
        megatron+=(
            # The critic does not follow the actor.
            critic.megatron.tensor_model_parallel_size="$TP"
            critic.megatron.pipeline_model_parallel_size="$PP"
            critic.megatron.param_offload=True
            critic.megatron.optimizer_offload=True
            critic.optim.lr=1e-5
        ) ;;
    *) rollouts=8 ;;
esac
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]'
    "+mtgrpo=$METHOD"
    # Without + on purpose: if the group above was not found, Hydra knows no such key and stops.
    reward.turn.preset=paper_v1
    "${megatron[@]}"

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.train_batch_size=256
    data.max_prompt_length=1024
    data.max_response_length=2048

    actor_rollout_ref.model.path="$MODEL"
    $actor.optim.lr=1e-6
    $actor.ppo_mini_batch_size=128
    $actor.use_dynamic_bsz=True
    $actor.ppo_max_token_len_per_gpu=16384

    $rollout.name=vllm
    $rollout.gpu_memory_utilization=0.6
    $rollout.tensor_model_parallel_size="$TP"
    $rollout.n=$rollouts
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2

    trainer.n_gpus_per_node="$GPUS"
    trainer.nnodes=1
    trainer.total_epochs=100       # the number of steps ends the run
    trainer.total_training_steps=300
    trainer.test_freq=25
    trainer.save_freq=100
    'trainer.logger=[console,file]'
    trainer.project_name=mtgrpo_megatron
    trainer.experiment_name="$METHOD"
)
launch "${overrides[@]}" "$@"
