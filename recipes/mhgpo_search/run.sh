#!/usr/bin/env bash
# MHGPO (arXiv 2506.02718): a rewriter, a reranker and an answerer, played by one model; only the answer is scored. See README.md here.
#
#   bash recipes/mhgpo_search/run.sh [mhgpo_search] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/mhgpo_search/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(mhgpo_search)
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
DATA=${DATA:-$PWD/data/questions}  # made by: mtgrpo data
GPUS=${GPUS:-8}
export MTGRPO_INDEX=${MTGRPO_INDEX:-http://127.0.0.1:8000}
HERE=$(cd "$(dirname "$0")" && pwd)

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
roles=trainer.turn.roles
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset="$HERE/rewards.py:answer_f1"    # without +, so that Hydra stops if it did not find the groups
    $roles.sampling=fof
    +$roles.names.rewriter.reward="$HERE/rewards.py:watched"  # or :paid_for_hits

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    $rollout.multi_turn.format=hermes

    $actor.optim.lr=1e-6
    $actor.use_kl_loss=True
    data.train_batch_size=512
    $actor.ppo_mini_batch_size=256
    $rollout.n=4               # outputs per role: three times as many rows per question
    data.max_prompt_length=3072
    data.max_response_length=512

    $actor.fsdp_config.param_offload=True
    $actor.fsdp_config.optimizer_offload=True
    trainer.n_gpus_per_node="$GPUS"

    trainer.total_epochs=1
    trainer.test_freq=20
    trainer.project_name=mtgrpo_mhgpo
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
