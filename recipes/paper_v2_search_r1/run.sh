#!/usr/bin/env bash
# The paper's second experiments, on Search-R1's set-up: NQ and HotpotQA, several searches. See README.md here.
#
#   bash recipes/paper_v2_search_r1/run.sh [METHOD] [HYDRA OVERRIDES...]
#       METHOD: mt_ppo|ppo_or|ppo_mr|grpo_or|grpo_mr (the paper's), ppo_merged|grpo_merged (controls), mt_grpo|turn_rloo
#   DRY_RUN=cpu bash recipes/paper_v2_search_r1/run.sh      # two steps with a tiny policy, without GPU
set -euo pipefail
RECIPE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$RECIPE/../launch.sh"

METHOD=mt_ppo
is_override "${1-}" || { METHOD=${1:-$METHOD}; [ $# -eq 0 ] || shift; }
one_of "$METHOD" mt_ppo ppo_or ppo_mr ppo_merged grpo_or grpo_mr grpo_merged mt_grpo turn_rloo

MODEL=${MODEL:-Qwen/Qwen2.5-7B}
DATA=${DATA:-$PWD/data/nq_hotpotqa}  # of: mtgrpo data ... --format search_r1
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
    # With a critic: the KL penalty is in the reward (the presets set it), one rollout a question.
    *ppo*) method=(
        $rollout.n=1
        critic.optim.lr=1e-5
        critic.optim.lr_warmup_steps_ratio=0.015
        critic.fsdp.param_offload=True
        critic.fsdp.optimizer_offload=True
        critic.ppo_max_token_len_per_gpu=32768
    ) ;;
    # In groups: the KL term is in the loss.
    *) method=($rollout.n=5 $actor.use_kl_loss=True $actor.kl_loss_coef=0.001 $actor.kl_loss_type=low_var_kl) ;;
esac
overrides=(
    'hydra.searchpath=[pkg://verl_mtgrpo.config]'
    "+mtgrpo=$group"
    # Without + on purpose: if the group above was not found, Hydra knows no such key and stops.
    reward.turn.preset="$rewards"

    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/val.parquet"
    data.train_batch_size=512
    data.max_prompt_length=1024
    data.max_response_length=4096  # all turns and results together; the paper: 500 tokens for each

    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.model.enable_gradient_checkpointing=True
    $actor.optim.lr=1e-6
    $actor.optim.lr_warmup_steps_ratio=0.285
    $actor.fsdp_config.param_offload=True
    $actor.fsdp_config.optimizer_offload=True
    actor_rollout_ref.ref.fsdp_config.param_offload=True
    $actor.clip_ratio=0.2
    $actor.ppo_mini_batch_size=256
    $actor.use_dynamic_bsz=True
    $actor.ppo_max_token_len_per_gpu=16384

    $rollout.name=vllm
    $rollout.gpu_memory_utilization=0.6
    $rollout.tensor_model_parallel_size="$TP"
    # Results are appended as plain text to one growing text, as Search-R1 does, without chat roles.
    $rollout.agent.default_agent_loop=mtgrpo_raw_agent
    $rollout.multi_turn.format=search_r1
    $rollout.multi_turn.max_assistant_turns=4         # three searches and the answer; 5 is Search-R1's loop with 4 searches
    $rollout.multi_turn.max_tool_response_length=2000 # characters, about the paper's 500 tokens
    "${method[@]}"

    trainer.n_gpus_per_node="$GPUS"
    trainer.nnodes=1
    trainer.total_epochs=100       # the number of steps ends the run
    trainer.total_training_steps=500
    trainer.test_freq=50
    trainer.save_freq=100
    'trainer.logger=[console,file]'
    trainer.project_name=mtgrpo_paper_v2
    trainer.experiment_name="$METHOD"
)
launch "${overrides[@]}" "$@"
