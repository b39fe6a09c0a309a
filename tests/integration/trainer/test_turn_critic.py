"""What a turn critic's workers compute, and what the trainer hands them; real runs: ../test_turn_critic.py."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

pytest.importorskip("verl")

from tensordict import TensorDict
from verl.workers.utils.padding import response_from_nested

from verl_mtgrpo.credit.turn_td import value_targets
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.critic_loss import at_places, discriminator_loss, turn_value_loss
from verl_mtgrpo.integration.settings import TurnCriticSettings
from verl_mtgrpo.integration.trainer.memory import Kept
from verl_mtgrpo.integration.trainer.replay import FILE, Replay, means
from verl_mtgrpo.integration.trainer.turn_critic import after_each_token, learns_turns, resumed_folder

pytestmark = pytest.mark.imports_verl

# (prompt tokens, response mask) of each row.
ROWS = [
    (2, [1, 1, 0, 1]),
    (3, [1]),
    (1, [0, 1, 0, 0, 1, 1]),
    (2, [0, 0]),
    (4, [1, 0, 1]),
    (2, [1, 1]),
    (1, [1]),
    (3, [1, 0]),
]


def nested(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def read(seed: int = 0) -> list[Tensor]:
    """What a critic says at every token of each row, prompt included."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(prompt + len(mask), generator=draw) for prompt, mask in ROWS]


def batch(rows: list[int], targets: list[Tensor], weights: list[Tensor], *, of: int, workers: int = 1) -> TensorDict:
    """A micro-batch of these rows, of a mini-batch of ``of`` rows."""
    data = TensorDict(
        {
            "prompts": nested([torch.zeros(ROWS[row][0], dtype=torch.long) for row in rows]),
            "responses": nested([torch.zeros(len(ROWS[row][1]), dtype=torch.long) for row in rows]),
            "value_targets": nested([targets[row] for row in rows]),
            "value_weights": nested([weights[row] for row in rows]),
        },
        batch_size=len(rows),
    )
    data.set_non_tensor("dp_size", workers)
    data.set_non_tensor("global_batch_size", of)
    return data


def taught(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    targets = [torch.randn(len(mask) + 1, generator=draw) for _, mask in ROWS]
    weights = [(torch.rand(len(mask) + 1, generator=draw) < 0.5).float() * 1.3 for _, mask in ROWS]
    return targets, weights


def loss_of(parts: list[list[int]], workers: int = 1, of=turn_value_loss) -> tuple[float, list[Tensor]]:
    """The sum of the losses of micro-batches, and its gradient at every token."""
    values = [row.requires_grad_() for row in read()]
    targets, weights = taught(1)
    total = 0.0
    for rows in parts:
        output = {"values": nested([values[row] for row in rows])}
        loss, metrics = of(output, batch(rows, targets, weights, of=len(ROWS), workers=workers))
        (loss / workers).backward()
        total += float(loss.detach()) / workers
        assert metrics["critic/vf_loss"].aggregation.value == "sum"
    return total, [value.grad if value.grad is not None else torch.zeros_like(value) for value in values]


def test_the_loss_is_the_sum_over_places_written_out():
    values, (targets, weights) = read(), taught(1)
    wanted = 0.0
    for (prompt, mask), said, target, weight in zip(ROWS, values, targets, weights, strict=True):
        for place in range(len(mask) + 1):  # place p is read at token prompt + p - 1
            wanted += 0.5 * float(weight[place]) * (float(said[prompt + place - 1]) - float(target[place])) ** 2
    loss, gradients = loss_of([[*range(8)]])
    assert loss == pytest.approx(wanted / len(ROWS), rel=1e-5)
    for (prompt, _), said, target, weight, gradient in zip(ROWS, values, targets, weights, gradients, strict=True):
        expected = torch.zeros_like(said)
        expected[prompt - 1 :] = weight * (said[prompt - 1 :] - target) / len(ROWS)
        assert torch.allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize(
    "parts", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[n] for n in range(8)], [[7, 0], [3], [1, 2, 4, 5, 6]]]
)
def test_how_a_mini_batch_is_cut_changes_nothing(parts):
    (whole, one), (cut, other) = loss_of([[*range(8)]]), loss_of(parts)
    assert cut == pytest.approx(whole, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_a_discriminators_loss_is_the_cross_entropy_written_out_however_the_mini_batch_is_cut():
    values, (targets, weights) = read(), taught(1)
    wanted = 0.0
    for (prompt, mask), said, target, weight in zip(ROWS, values, targets, weights, strict=True):
        for place in range(len(mask) + 1):
            d, e = 1 / (1 + math.exp(-float(said[prompt + place - 1]))), float(target[place])
            wanted -= float(weight[place]) * (e * math.log(d) + (1 - e) * math.log(1 - d)) / len(ROWS)
    (whole, one), (cut, other) = (
        loss_of(parts, of=discriminator_loss) for parts in ([[*range(8)]], [[7, 0], [3], [1, 2, 4, 5, 6]])
    )
    assert whole == pytest.approx(wanted, rel=1e-5) and cut == pytest.approx(wanted, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_gradients_are_averaged_over_workers():
    (whole, one), (shared, other) = loss_of([[*range(8)]]), loss_of([[0, 1, 2, 3], [4, 5, 6, 7]], workers=2)
    assert shared == pytest.approx(whole, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_a_micro_batch_without_a_place_to_learn_has_a_loss_of_0_that_can_be_differentiated():
    values = [row.requires_grad_() for row in read()]
    targets, weights = taught(1)
    nothing = [torch.zeros_like(one) for one in weights]
    loss, metrics = turn_value_loss({"values": nested(values[:2])}, batch([0, 1], targets, nothing, of=8))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert "critic/vpred_mean" not in metrics


def test_values_before_and_after_each_token_are_those_at_its_places():
    said = read()
    masks = nested([torch.tensor(mask) for _, mask in ROWS])
    before = response_from_nested(nested(said), masks).unbind()  # verl's own
    after = after_each_token(nested(said), masks).unbind()
    places = at_places(nested(said), batch([*range(8)], *taught(1), of=8))
    flat = at_places(torch.cat(said), batch([*range(8)], *taught(1), of=8))
    for row, (_, mask) in enumerate(ROWS):
        assert len(places[row]) == len(mask) + 1
        assert torch.equal(places[row][:-1], before[row])
        assert torch.equal(places[row][1:], after[row])
        assert torch.equal(places[row], flat[row])


def test_the_workers_learn_at_the_places_that_the_targets_are_for():
    """Values that differ from their targets at one turn's end: only there is a gradient."""
    mask = torch.tensor([[1, 1, 0, 1]])
    values = torch.tensor([0.0, 5.0, 9.0, 7.0, 5.0, 3.0])  # prompt of 2: places 0..4 are 5 9 7 5 3
    targets, learned = value_targets(
        torch.tensor([[0, 2.0, 0, 3.0]]), mask, values[None, 1:5], values[None, 2:6], discount=1.0
    )
    # Q_1 ← 2 + V_2 = 2 + 5 = 7, which it is; V_1 ← 7 (is 5); Q_2 ← 3, which it is; V_2 ← 3 (is 5).
    values.requires_grad_()
    data = batch([0], [targets[0]], [learned[0].float()], of=1)
    turn_value_loss({"values": nested([values])}, data)[0].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, -2.0, 0, 0, 2.0, 0]


@pytest.mark.parametrize(("estimator", "learns"), [("turn_td", True), ("turn_gae", False), ("gae", False)])
def test_which_runs_have_a_turn_critic(estimator, learns):
    assert learns_turns(OmegaConf.create({"algorithm": {"adv_estimator": estimator}})) is learns


@pytest.mark.parametrize(
    ("own", "kept", "replay", "count"),
    [
        *[(32, 0, 1.0, 0), (32, 7, 1.0, 0), (32, 20, 1.0, 16)],
        *[(32, 100, 1.0, 32), (32, 100, 2.5, 80), (32, 100, 9.0, 96)],
        *[(720, 999, 0.7, 504), (200, 999, 1.16, 232)],  # as floats 503.99… and 231.99…
    ],
)
def test_earlier_rows_come_in_whole_mini_batches(own, kept, replay, count):
    settings = TurnCriticSettings(memory=999, replay=replay)
    assert settings.replayed(own, kept, 8 if count != 0 else 16) == count


def test_memories_of_removed_checkpoints_are_removed(tmp_path: Path):
    replay = Replay(TurnCriticSettings(memory=4), mini_batch=1, seed=0)
    for step in (1, 2, 3):
        (tmp_path / f"global_step_{step}" / "critic").mkdir(parents=True)
        replay.save(tmp_path / f"global_step_{step}")
    (tmp_path / "global_step_1" / "critic").rmdir()  # as verl does
    replay.save(tmp_path / "global_step_4")
    assert [(tmp_path / f"global_step_{step}" / FILE).exists() for step in (1, 2, 3, 4)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "EOFError"),
        (b"garbage", "UnpicklingError"),
        ([1, 2], "AttributeError"),
        ({"layout": 99}, "layout 99, expected layout 1"),
        ({"layout": 1, "lengths": {"prompt": [1], "response": [1]}}, "reading it raises KeyError"),
        (9, r"has rollouts of step 9, but the run continues from step 4: it is of another run"),
    ],
)
def test_a_memory_that_is_damaged_or_of_another_run_is_refused(tmp_path: Path, content, says):
    replay = Replay(TurnCriticSettings(memory=4), mini_batch=1, seed=0)
    if isinstance(content, bytes):
        (tmp_path / FILE).write_bytes(content)
    elif isinstance(content, int):
        ids = torch.zeros(1, dtype=torch.int32)
        replay.memory.add([Kept(content, ids, ids, ids.bool(), ids.float(), torch.zeros(2, dtype=torch.int32))])
        replay.save(tmp_path)
        Replay(TurnCriticSettings(memory=4), mini_batch=1, seed=0).load(tmp_path, content)
    else:
        torch.save(content, tmp_path / FILE)
    with pytest.raises(ConfigError, match=rf"turn_memory\.pt .*{says}.*; .*remove .*turn_memory\.pt to begin"):
        replay.load(tmp_path, 4)


def test_where_a_run_continues_from():
    auto = SimpleNamespace(resume_mode="auto", resume_from_path=None, default_local_dir="/c")
    assert resumed_folder(auto, 7) == Path("/c/global_step_7")
    named = SimpleNamespace(resume_mode="resume_path", resume_from_path="/d/global_step_3", default_local_dir="/c")
    assert resumed_folder(named, 3) == Path("/d/global_step_3")


def test_means_are_over_the_rounds_that_have_a_number():
    assert means([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
