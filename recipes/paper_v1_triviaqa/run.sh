#!/usr/bin/env bash
# The paper's first experiments: Qwen2.5-7B learns to answer TriviaQA with one search. See README.md here.
#
#   bash recipes/paper_v1_triviaqa/run.sh [mt_grpo_v1|mt_grpo|grpo_or|grpo_mr] [HYDRA OVERRIDES...]
#   DRY_RUN=cpu bash recipes/paper_v1_triviaqa/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(mt_grpo_v1 mt_grpo grpo_or grpo_mr)  # the first is the default
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

HERE=$(cd "$(dirname "$0")" && pwd)
MODEL=${MODEL:-Qwen/Qwen2.5-7B}
DATA=${DATA:-$PWD/data/triviaqa}  # made by: mtgrpo data ... --format mtgrpo_xml
GPUS=${GPUS:-8}
export MTGRPO_INDEX=${MTGRPO_INDEX:-$PWD/data/wiki18/bm25}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$METHOD" +mtgrpo_recipe=default
    reward.turn.preset=paper_v1    # without +, so that Hydra stops if it did not find the groups

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    $rollout.multi_turn.format=mtgrpo_xml
    $rollout.multi_turn.tool_config_path="$HERE/search_tool.yaml"
    $rollout.multi_turn.max_assistant_turns=2  # one search, then the answer

    $actor.optim.lr=1e-6
    $actor.optim.lr_warmup_steps=20
    $actor.optim.clip_grad=0.1
    $actor.ppo_epochs=2            # the paper's iterations
    $actor.use_kl_loss=False       # beta = 0
    data.train_batch_size=16       # questions; x 21 rollouts = 336 = 12 x 4 accumulation steps x 7 GPUs of the paper
    $actor.ppo_mini_batch_size=16
    $rollout.n=21
    data.max_prompt_length=1024
    data.max_response_length=1024  # tool results count too

    trainer.n_gpus_per_node="$GPUS"

    trainer.total_training_steps=300
    trainer.test_freq=25
    trainer.project_name=mtgrpo_paper_v1
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$HERE/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
