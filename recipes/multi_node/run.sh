#!/usr/bin/env bash
# Training on a Ray cluster of several nodes; run on its head, or by submit.sbatch. See README.md here.
#
#   NODES=2 bash recipes/multi_node/run.sh [mt_grpo|mt_ppo] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/multi_node/run.sh      # a cluster of one node on this machine, two steps with a tiny policy
set -euo pipefail
RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$RECIPE/../launch.sh"

METHOD=mt_grpo
is_override "${1-}" || { METHOD=${1:-$METHOD}; [ $# -eq 0 ] || shift; }
one_of "$METHOD" mt_grpo mt_ppo

MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
# Relative paths are other ones on other nodes.
absolute() { case $1 in /* | *://*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
DATA=$(absolute "${DATA:-data/questions}")  # of: mtgrpo data ...; on a disk that all nodes see
NODES=${NODES:-2}
GPUS=${GPUS:-8}                    # of each node
export RAY_ADDRESS=${RAY_ADDRESS:-auto}  # a cluster that runs already: node.sh
if [ "${DRY_RUN:-}" = cpu ]; then
    export LAUNCHER="bash $RECIPE/one_node.sh"
fi

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
case $METHOD in
    mt_ppo) method=($rollout.n=1 critic.optim.lr=1e-5) ;;
    *) method=($rollout.n=8) ;;
esac
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]'
    "+mtgrpo=$METHOD"
    # Without + on purpose: if the group above was not found, Hydra knows no such key and stops.
    reward.turn.preset=paper_v1

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.train_batch_size=256
    data.max_prompt_length=1024
    data.max_response_length=2048

    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.model.enable_gradient_checkpointing=True
    $actor.optim.lr=1e-6
    $actor.ppo_mini_batch_size=128
    $actor.use_dynamic_bsz=True
    $actor.ppo_max_token_len_per_gpu=16384

    $rollout.name=vllm
    $rollout.gpu_memory_utilization=0.6
    $rollout.tensor_model_parallel_size=1
    $rollout.multi_turn.format=hermes
    $rollout.multi_turn.max_assistant_turns=2
    "${method[@]}"

    trainer.n_gpus_per_node="$GPUS"
    trainer.nnodes="$NODES"
    trainer.total_epochs=100       # the number of steps ends the run
    trainer.total_training_steps=300
    trainer.test_freq=25
    trainer.save_freq=50
    'trainer.logger=[console,file]'
    trainer.project_name=mtgrpo_multi_node
    trainer.experiment_name="$METHOD"
    trainer.default_local_dir="$PWD/checkpoints/\${trainer.project_name}/\${trainer.experiment_name}"
)
launch "${overrides[@]}" "$@"
