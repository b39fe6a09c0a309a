#!/usr/bin/env bash
# Turn-level methods on verl's Megatron engine: the set of overrides that differs. See README.md here.
#
#   bash recipes/megatron/run.sh [mt_grpo|turn_rloo|mt_ppo|turn_gae] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/megatron/run.sh      # composes and checks this; then two steps on FSDP2
set -euo pipefail

METHODS=(mt_ppo mt_grpo turn_rloo turn_gae)  # the first is the default
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
DATA=${DATA:-$PWD/data/questions}  # made by: mtgrpo data
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
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset=paper_v1    # without +, so that Hydra stops if it did not find the groups
    "${megatron[@]}"

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2  # one search, then the answer

    $actor.optim.lr=1e-6
    data.train_batch_size=256
    $actor.ppo_mini_batch_size=128
    $rollout.n=$rollouts
    data.max_prompt_length=1024
    data.max_response_length=2048

    $rollout.tensor_model_parallel_size="$TP"
    trainer.n_gpus_per_node="$GPUS"

    trainer.total_training_steps=300
    trainer.test_freq=25
    trainer.project_name=mtgrpo_megatron
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
