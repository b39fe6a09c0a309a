"""Prepare once what every agent loop of a run needs, because verl makes a new loop for each rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.integration.rollout.end_of_turn import EndOfTurn, end_of_turn
from verl_mtgrpo.integration.rollout.outside_text import OutsideText, outside_text
from verl_mtgrpo.integration.rollout.transcripts import Destination, destination
from verl_mtgrpo.rewards.formats import CUT_FORMATS, FORMATS, TextFormat


@dataclass(frozen=True)
class LoopSetup:
    """The parts of a loop that are the same for every rollout of a run.

    Attributes:
        cut_format: The format, if its turns end at a closing tag; None for verl's formats.
        ends: How turns end.
        outside: Makes text from tools safe for the tokenizer to read.
        stop: True if the rollout engine can stop at a string.
        transcripts_go: Where transcripts go once rewards are known.
    """

    cut_format: TextFormat | None
    ends: EndOfTurn
    outside: OutsideText
    stop: bool
    transcripts_go: Destination


@dataclass(frozen=True)
class _Known:
    config: Any
    data_config: Any
    tokenizer: Any
    template: str
    setup: LoopSetup

    def fits(self, config: Any, data_config: Any, tokenizer: Any) -> bool:
        same = self.config is config and self.data_config is data_config and self.tokenizer is tokenizer
        return same and self.template == str(tokenizer.chat_template)


_last: _Known | None = None


def loop_setup(config: Any, data_config: Any, tokenizer: Any) -> LoopSetup:
    """Return the setup of a run; it is computed again only for another config, tokenizer or chat template.

    A worker starts hundreds of rollouts on its event loop at once, and reading a config takes a while.

    Args:
        config: verl's whole config.
        data_config: Its ``data`` node.
        tokenizer: The policy's tokenizer.
    """
    global _last
    if _last is None or not _last.fits(config, data_config, tokenizer):
        setup = _work_out(config, data_config, tokenizer)
        _last = _Known(config, data_config, tokenizer, str(tokenizer.chat_template), setup)
    return _last.setup


def _work_out(config: Any, data_config: Any, tokenizer: Any) -> LoopSetup:
    spoken = config.actor_rollout_ref.rollout.multi_turn.format
    known = FORMATS.get(spoken)
    return LoopSetup(
        cut_format=CUT_FORMATS.get(spoken),
        ends=end_of_turn(tokenizer, data_config.get("apply_chat_template_kwargs", {}), _model_paths(config)),
        outside=outside_text(tokenizer, (known.result,) if known else ()),
        stop=knows_stop_strings(config.actor_rollout_ref.rollout),
        transcripts_go=destination(config),
    )


def knows_stop_strings(rollout_config: Any) -> bool:
    """Return True if the rollout engine can stop at a string, for which it needs a tokenizer."""
    if rollout_config.name in ("vllm", "hf_cpu"):
        return True
    return rollout_config.name == "sglang" and not rollout_config.skip_tokenizer_init


def _model_paths(config: Any) -> tuple[str, ...]:
    """Return the paths where the model's generation config may be."""
    model = config.actor_rollout_ref.get("model") or {}
    return tuple(str(model[key]) for key in ("hf_config_path", "path") if model.get(key))
