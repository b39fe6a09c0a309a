"""Make a tiny policy that searches, its index and its questions, with a made-up tokenizer or a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.gpu.machine import REPOSITORY
from verl_mtgrpo.demo.toy import HERMES, TOOLS, TwoHabits, make_toy

QUESTIONS = 8
REAL_TOKENIZER = REPOSITORY.parent / "shared" / "data" / "tokenizers" / "qwen3"


def make_assets(folder: Path, *, tokenizer: Path | None, device: str, steps: int = 120) -> Path:
    """Make ``policy``, ``index`` and parquet files in ``folder``; with a real tokenizer the policy is trained here.

    Args:
        folder: Where to.
        tokenizer: Folder of a Hugging Face tokenizer whose chat template speaks hermes (Qwen3's); None: the made one.
        device: Where the policy is trained: with a vocabulary of 150,000 that takes seconds on a GPU, minutes on a CPU.
        steps: Of its training.
    """
    make_toy(folder, HERMES, questions=2 * QUESTIONS)
    if tokenizer is None:
        return folder
    done, key = folder / "kit.json", json.dumps({"tokenizer": str(tokenizer), "steps": steps})
    if not done.exists() or done.read_text() != key:
        _train_policy(folder / "policy", tokenizer, device, steps)
        done.write_text(key)
    return folder


def _train_policy(folder: Path, tokenizer_folder: Path, device: str, steps: int) -> None:
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from verl_mtgrpo.demo.policy import build_model, save_policy
    from verl_mtgrpo.demo.warmup import SampleMaker
    from verl_mtgrpo.demo.world import World

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = build_model(tokenizer, seed=0).to(device)
    maker, habits, rng = (
        SampleMaker(tokenizer, World((), (), (), ()), TOOLS),
        TwoHabits(HERMES),
        np.random.default_rng(0),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        pace = min((step + 1) / 10, 0.05 + 0.95 * math.cos(math.pi / 2 * step / steps))
        optimizer.param_groups[0]["lr"] = 2e-3 * pace
        samples = [maker(habits.drill(), rng) for _ in range(8)]
        ids, weights = (
            torch.nn.utils.rnn.pad_sequence([torch.from_numpy(getattr(one, name)) for one in samples], batch_first=True)
            for name in ("ids", "weights")
        )
        ids, weights = ids.to(device), weights.to(device)[:, 1:]  # padding, on the right, has weight 0
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses.view_as(weights) * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"  a policy of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters, loss {loss:.3f}")
    save_policy(model.cpu(), tokenizer, folder)
