#!/usr/bin/env bash
# Training on a Ray cluster of several nodes; run on its head, or by submit.sbatch. See README.md here.
#
#   NODES=2 bash recipes/multi_node/run.sh [mt_grpo|mt_ppo] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/multi_node/run.sh      # on this machine: a cluster of one node, two steps, a tiny policy
set -euo pipefail

METHODS=(mt_grpo mt_ppo)  # the first is the default
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
# A relative path means another folder on each node.
absolute() { case $1 in /* | *://*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
DATA=$(absolute "${DATA:-data/questions}")  # made by: mtgrpo data; on a disk that all nodes see
NODES=${NODES:-2}
GPUS=${GPUS:-8}                          # of each node
export RAY_ADDRESS=${RAY_ADDRESS:-auto}  # a cluster that runs already: node.sh

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
case $METHOD in
    mt_ppo) method=($rollout.n=1 critic.optim.lr=1e-5) ;;
    *) method=($rollout.n=8) ;;
esac
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset=paper_v1    # without +, so that Hydra stops if it did not find the groups

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2  # one search, then the answer

    $actor.optim.lr=1e-6
    data.train_batch_size=256
    $actor.ppo_mini_batch_size=128
    "${method[@]}"
    data.max_prompt_length=1024
    data.max_response_length=2048

    trainer.n_gpus_per_node="$GPUS"
    trainer.nnodes="$NODES"

    trainer.total_training_steps=300
    trainer.test_freq=25
    trainer.save_freq=50
    trainer.project_name=mtgrpo_multi_node
    trainer.default_local_dir="$PWD/checkpoints/\${trainer.project_name}/\${trainer.experiment_name}"
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then
    export LAUNCHER="bash $(dirname "$0")/one_node.sh"
    main=("$(dirname "$0")/../dry_run.py" "$0")
fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
