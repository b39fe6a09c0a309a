#!/usr/bin/env bash
# The paper's MT-GRPO for several turns (arXiv 2505.11821, appendix D): turns compared in a tree of rollouts. See README.md here.
#
#   bash recipes/mt_grpo_tree/run.sh [mt_grpo_tree|turn_rloo_tree|mt_grpo|turn_rloo] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/mt_grpo_tree/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(mt_grpo_tree turn_rloo_tree mt_grpo turn_rloo)  # the first is the default; the last two do not branch
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-7B}
DATA=${DATA:-$PWD/data/nq_hotpotqa}  # made by: mtgrpo data ... --format search_r1
GPUS=${GPUS:-8}
export MTGRPO_INDEX=${MTGRPO_INDEX:-http://127.0.0.1:8000}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
case $METHOD in
    *_tree) loop=mtgrpo_raw_tree_agent leaves=16 ;;  # four first turns, four second ones after each: 4 + 16 + 16 turns
    *) loop=mtgrpo_raw_agent leaves=12 ;;            # as many turns to generate: 36
esac
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset=paper_v2    # without +, so that Hydra stops if it did not find the groups

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    # Results are appended as plain text to one growing text, as Search-R1 does, without chat roles.
    $rollout.agent.default_agent_loop=$loop
    $rollout.multi_turn.format=search_r1
    $rollout.multi_turn.max_assistant_turns=3         # two searches and the answer
    $rollout.multi_turn.max_tool_response_length=2000 # characters, about the paper's 500 tokens
    $rollout.n=$leaves

    $actor.optim.lr=1e-6
    $actor.clip_ratio=0.2
    data.train_batch_size=128
    $actor.ppo_mini_batch_size=64
    $actor.use_kl_loss=True
    $actor.kl_loss_coef=0.001
    data.max_prompt_length=1024
    data.max_response_length=3072

    $actor.fsdp_config.param_offload=True
    $actor.fsdp_config.optimizer_offload=True
    actor_rollout_ref.ref.fsdp_config.param_offload=True
    trainer.n_gpus_per_node="$GPUS"

    trainer.total_training_steps=300
    trainer.test_freq=20
    trainer.project_name=mtgrpo_tree
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
