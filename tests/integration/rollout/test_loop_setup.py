"""Test the setup that the agent loops of a run share."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.integration.rollout.loop_setup import loop_setup

pytestmark = pytest.mark.compose


def test_worked_out_once_a_run_and_again_for_anything_else(config):
    tokenizer, other = (build_tokenizer(["one two"], []) for _ in range(2))
    settings = config.copy()
    first = loop_setup(settings, settings.data, tokenizer)
    assert loop_setup(settings, settings.data, tokenizer) is first
    assert loop_setup(settings, settings.data, other) is not first
    again = config.copy()
    assert loop_setup(again, again.data, other) is not loop_setup(settings, settings.data, other)
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|im_end|>"
    changed = loop_setup(settings, settings.data, tokenizer)
    assert changed is not first and changed.ends.text != first.ends.text
