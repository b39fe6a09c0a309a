#!/usr/bin/env bash
# An existing recipe of verl, and the three overrides at its end that turn it into MT-GRPO.
#
#   bash existing_recipe.sh                      # verl's multi-turn GRPO with tools, as it was
#   bash existing_recipe.sh 'hydra.searchpath=[pkg://verl_mtgrpo.config]' \
#       +mtgrpo=mt_grpo \
#       algorithm.adv_estimator=mt_grpo \
#       actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent
#
# The first is all that a recipe needs which does not name an estimator and an agent loop itself; this one does, and
# what the command line says wins over a group. Everything else stays, its own tools too. Questions with
# tool_agent in a column agent_name, as those of verl's tool examples, are rolled out by mtgrpo_tool_agent too.
#
# MODEL, TRAIN, VAL and TOOLS name the model, the questions and verl's YAML of tools.
set -euo pipefail

exec "${PYTHON:-python}" -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files="${TRAIN:-data/train.parquet}" \
    data.val_files="${VAL:-data/val.parquet}" \
    data.train_batch_size=256 \
    data.max_prompt_length=1024 \
    data.max_response_length=4096 \
    actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen2.5-3B-Instruct}" \
    actor_rollout_ref.actor.ppo_mini_batch_size=128 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent \
    actor_rollout_ref.rollout.multi_turn.enable=True \
    actor_rollout_ref.rollout.multi_turn.tool_config_path="${TOOLS:-tools.yaml}" \
    actor_rollout_ref.rollout.multi_turn.max_assistant_turns=4 \
    trainer.total_epochs=1 \
    "$@"
