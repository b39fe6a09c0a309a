#!/usr/bin/env bash
# The paper's second experiments, on Search-R1's set-up: NQ and HotpotQA, several searches. See README.md here.
#
#   bash recipes/paper_v2_search_r1/run.sh [METHOD] [HYDRA OVERRIDES...]
#       METHOD: mt_ppo|ppo_or|ppo_mr|grpo_or|grpo_mr (the paper's), ppo_merged|grpo_merged (controls), mt_grpo|turn_rloo
#   DRY_RUN=cpu bash recipes/paper_v2_search_r1/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail

METHODS=(mt_ppo ppo_or ppo_mr ppo_merged grpo_or grpo_mr grpo_merged mt_grpo turn_rloo)  # the first is the default
METHOD=${METHODS[0]}
if [[ $# -gt 0 && $1 != *=* && $1 != [-~]* ]]; then METHOD=${1:-$METHOD}; shift; fi
[[ " ${METHODS[*]} " == *" $METHOD "* ]] || { echo "no method '$METHOD'; expected one of: ${METHODS[*]}" >&2; exit 1; }

MODEL=${MODEL:-Qwen/Qwen2.5-7B}
DATA=${DATA:-$PWD/data/nq_hotpotqa}  # made by: mtgrpo data ... --format search_r1
GPUS=${GPUS:-8}
TP=${TP:-4}  # GPUS a multiple of it
export MTGRPO_INDEX=${MTGRPO_INDEX:-http://127.0.0.1:8000}

actor=actor_rollout_ref.actor
rollout=actor_rollout_ref.rollout
group=$METHOD
case $METHOD in
    *_or) rewards=search_r1_em ;;      # Search-R1's exact match
    *_mr) rewards=search_r1_format ;;  # exact match and form, arXiv 2505.15117
    # A control, not a baseline of the paper's: MT-PPO's own rewards, paid at the end.
    *_merged) rewards=paper_v2 group=${METHOD%_merged}_mr ;;
    *) rewards=paper_v2 ;;
esac
case $METHOD in
    # With a critic: the KL penalty is in the reward (the group sets it), one rollout per question.
    *ppo*) method=(
        $rollout.n=1
        critic.optim.lr=1e-5
        critic.optim.lr_warmup_steps_ratio=0.015
        critic.fsdp.param_offload=True
        critic.fsdp.optimizer_offload=True
    ) ;;
    # In groups: the KL term is in the loss.
    *) method=($rollout.n=5 $actor.use_kl_loss=True $actor.kl_loss_coef=0.001 $actor.kl_loss_type=low_var_kl) ;;
esac
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]' "+mtgrpo=$group" +mtgrpo_recipe=default
    reward.turn.preset="$rewards"  # without +, so that Hydra stops if it did not find the groups

    actor_rollout_ref.model.path="$MODEL"
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    # Results are appended as plain text to one growing text, as Search-R1 does, without chat roles.
    $rollout.agent.default_agent_loop=mtgrpo_raw_agent
    $rollout.multi_turn.format=search_r1
    $rollout.multi_turn.max_assistant_turns=4         # three searches and the answer; Search-R1's four need 5
    $rollout.multi_turn.max_tool_response_length=2000 # characters, about the paper's 500 tokens

    $actor.optim.lr=1e-6
    $actor.optim.lr_warmup_steps_ratio=0.285
    $actor.clip_ratio=0.2
    data.train_batch_size=512
    $actor.ppo_mini_batch_size=256
    "${method[@]}"
    data.max_prompt_length=1024
    data.max_response_length=4096  # all turns and results together; the paper: 500 tokens for each

    $actor.fsdp_config.param_offload=True
    $actor.fsdp_config.optimizer_offload=True
    actor_rollout_ref.ref.fsdp_config.param_offload=True
    $rollout.tensor_model_parallel_size="$TP"
    trainer.n_gpus_per_node="$GPUS"

    trainer.total_training_steps=500
    trainer.test_freq=50
    trainer.project_name=mtgrpo_paper_v2
    trainer.experiment_name="$METHOD"  # two methods share a group
)
main=(-m verl.trainer.main_ppo)
if [[ -n ${DRY_RUN:-} ]]; then main=("$(dirname "$0")/../dry_run.py" "$0"); fi
exec "${PYTHON:-python3}" "${main[@]}" "${overrides[@]}" "$@"
