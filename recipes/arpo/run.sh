#!/usr/bin/env bash
# ARPO (arXiv 2507.19849): rollouts branch after tool results that surprise the policy, GRPO over the leaves. See README.md here.
#
#   bash recipes/arpo/run.sh [arpo|tree_grpo|at2po|grpo_or|mt_grpo] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/arpo/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(arpo tree_grpo at2po grpo_or mt_grpo)  # the first is the default; the last two do not branch
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
DATA=${DATA:-$PWD/data/questions}  # made by: mtgrpo data
GPUS=${GPUS:-8}
export MTGRPO_INDEX=${MTGRPO_INDEX:-http://127.0.0.1:8000}
HERE=$(cd "$(dirname "$0")" && pwd)

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
branch=trainer.turn.branch
method=()
case $METHOD in
    arpo) method=($branch.initial=8 $branch.width=2 $branch.probability=0.5 $branch.weight=0.2) ;;  # the published ones
    at2po) method=($branch.initial=8) ;;
    tree_grpo) method=($branch.initial=8) ;;
esac
rewards="$HERE/rewards.py:arpo"
if [[ $METHOD == mt_grpo ]]; then rewards=paper_v1; fi  # it needs rewards of turns
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset="$rewards"    # without +, so that Hydra stops if it did not find the groups

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=4  # ARPO's three calls, then the answer

    $actor.optim.lr=1e-6
    $actor.clip_ratio=0.2
    data.train_batch_size=128
    $actor.ppo_mini_batch_size=16
    $rollout.n=16              # leaves per question
    "${method[@]}"
    data.max_prompt_length=1536
    data.max_response_length=4096

    $actor.fsdp_config.param_offload=True
    $actor.fsdp_config.optimizer_offload=True
    trainer.n_gpus_per_node="$GPUS"

    trainer.total_epochs=2
    trainer.test_freq=20
    trainer.project_name=mtgrpo_arpo
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
