"""Shell scripts that start verl, written with the options and the habits of verl's own examples."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# As the multi-turn examples with tools: one command, a primary config of one's own, "$@" without quotes.
GSM8K = """\
# run on 8 GPUs, from the root of the project

set -x
ulimit -n 1024

PROJECT_DIR="$(pwd)"
CONFIG_PATH="$PROJECT_DIR/config"

python3 -m verl.trainer.main_ppo \\
    --config-path="$CONFIG_PATH" \\
    --config-name='gsm8k_grpo' \\
    algorithm.adv_estimator=grpo \\
    data.train_batch_size=256 \\
    data.max_prompt_length=1024 \\
    data.max_response_length=1024 \\
    data.filter_overlong_prompts=True \\
    data.truncation='error' \\
    data.return_raw_chat=True \\
    actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct \\
    actor_rollout_ref.actor.optim.lr=1e-6 \\
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.actor.kl_loss_coef=0.001 \\
    actor_rollout_ref.actor.fsdp_config.param_offload=False \\
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \\
    actor_rollout_ref.rollout.name=sglang \\
    actor_rollout_ref.rollout.n=16 \\
    algorithm.use_kl_in_reward=False \\
    trainer.logger=['console','wandb'] \\
    trainer.project_name='gsm8k_async_rl' \\
    trainer.experiment_name='qwen2.5-3b-tool' \\
    trainer.n_gpus_per_node=8 \\
    trainer.nnodes=1 \\
    trainer.save_freq=-1 \\
    data.train_files=$HOME/data/gsm8k/train.parquet \\
    data.val_files=$HOME/data/gsm8k/test.parquet \\
    actor_rollout_ref.rollout.multi_turn.tool_config_path="$PROJECT_DIR/config/gsm8k_tool.yaml" \\
    trainer.total_epochs=15 $@
"""
GSM8K_FILES = {
    "config/gsm8k_grpo.yaml": """\
hydra:
  searchpath: [pkg://verl.trainer.config]
defaults: [ppo_trainer, _self_]
data:
  return_raw_chat: True
actor_rollout_ref:
  hybrid_engine: True
  rollout:
    multi_turn: {enable: True, max_assistant_turns: 5}
""",
    "config/gsm8k_tool.yaml": """\
tools:
  - class_name: verl.tools.gsm8k_tool.Gsm8kTool
    config: {type: native}
    tool_schema:
      type: function
      function:
        name: calc_gsm8k_reward
        description: Grades an answer.
        parameters: {type: object, properties: {answer: {type: string}}, required: [answer]}
""",
}

# As the trainers' examples: knobs with defaults, arrays, a case, a program that is chosen, a parameter of its own.
ARRAYS = """\
#!/usr/bin/env bash
# GRPO | knobs: INFER_BACKEND, MACHINE
set -euo pipefail

DEVICE=${DEVICE:-$(command -v npu-smi >/dev/null 2>&1 && echo npu || echo gpu)}
INFER_BACKEND=${1:-vllm}
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-8B}
NGPUS_PER_NODE=${NGPUS_PER_NODE:-}
max_response_length=${MAX_RESPONSE_LENGTH:-2048}
rollout_tp=${ROLLOUT_TP:-}
EXPERIMENT_NAME=${EXPERIMENT_NAME:-qwen3_8b_${INFER_BACKEND}_$(date +%Y%m%d)}

EXTRA=()
case "${DEVICE}" in
    gpu)
        rollout_tp=${rollout_tp:-2}
        NGPUS_PER_NODE=${NGPUS_PER_NODE:-8}
        ;;
    npu)
        export HCCL_CONNECT_TIMEOUT=1500
        rollout_tp=${rollout_tp:-4}
        NGPUS_PER_NODE=8
        max_response_length=$((1024 * 32))
        EXTRA+=(
            actor_rollout_ref.actor.use_torch_compile=False
        )
        ;;
esac

DATA=(
    algorithm.adv_estimator=grpo
    data.train_files="['$HOME/data/gsm8k/train.parquet', '$HOME/data/math/train.parquet']"
    data.val_files="['$HOME/data/gsm8k/test.parquet']"
    data.max_response_length=${max_response_length}
    data.truncation='error'
)
ACTOR=(
    actor_rollout_ref.model.path="$MODEL_PATH"
    actor_rollout_ref.actor.optim.lr=${ACTOR_LR:-1e-6}
    actor_rollout_ref.actor.ppo_mini_batch_size=256  # of 1024
    actor_rollout_ref.actor.use_dynamic_bsz=True
)
ROLLOUT=(
    actor_rollout_ref.rollout.name=${INFER_BACKEND}
    actor_rollout_ref.rollout.tensor_model_parallel_size=${rollout_tp}
    actor_rollout_ref.rollout.n=5
    actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent
    actor_rollout_ref.rollout.multi_turn.enable=True
)
TRAINER=(
    trainer.logger='["console","wandb"]'
    trainer.experiment_name=${EXPERIMENT_NAME}
    trainer.n_gpus_per_node=${NGPUS_PER_NODE}
    trainer.save_freq=20
    trainer.total_epochs=15
)

LAUNCH=(python3)
"${LAUNCH[@]}" -m verl.trainer.main_ppo \\
    "${DATA[@]}" \\
    "${ACTOR[@]}" \\
    "${ROLLOUT[@]}" \\
    "${TRAINER[@]}" \\
    "${EXTRA[@]}"
"""


def write(folder: Path, text: str, **files: str) -> Path:
    """Write a script, and files beside it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    script = folder / "train.sh"
    script.write_text(text)
    return script


def as_bash_reads_it(script: Path, cwd: Path, *arguments: str, **environment: str) -> list[str]:
    """Run a script with a program in the place of Python that prints its arguments; return them."""
    shim = cwd / "shim"
    shim.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        (shim / name).write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$SAID"\n')
        (shim / name).chmod(0o755)
    said = cwd / "said"
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "DRY_RUN", "METHOD")}
    env = {**kept, "PATH": f"{shim}:{os.environ['PATH']}", "SAID": str(said), **environment}
    done = subprocess.run(
        ["bash", str(script), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return said.read_text().split("\0")[:-1]
