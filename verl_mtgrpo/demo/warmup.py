"""Warm the demo policy up with Hugging Face's Trainer: supervised, drills first, then habits."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from verl_mtgrpo.demo.policy import PAD, TURN_END, TURN_START, name_token, token_id
from verl_mtgrpo.demo.warmup_demos import RENAME_ALIKE, RENAME_ALL, Demonstration
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

# Share of the loss on tokens that the policy reads but never writes. It learns from them that names
# come back, which reading and querying rely on.
READ_WEIGHT = 0.1


@dataclass(frozen=True)
class Sample:
    """One training sequence: token ids and the weight of each token in the loss, both (length,)."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


class SampleMaker:
    """Turns demonstrations into samples with renamed names."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, world: World, tools: list[dict[str, Any]]) -> None:
        self.pad_id = token_id(tokenizer, PAD)
        self._tokenizer = tokenizer
        self._tools = tools
        self._names = self._token_ids(world.names)
        self._famous = self._token_ids([entity.name for entity in world.entities if entity.famous])
        self._obscure = np.setdiff1d(self._names, self._famous)
        self._opening = tokenizer.encode(f"{TURN_START}assistant\n", add_special_tokens=False)
        self._closing = token_id(tokenizer, TURN_END)

    def __call__(self, demonstration: Demonstration, rng: np.random.Generator) -> Sample:
        """Return the demonstration as a sample, with names exchanged at random."""
        text = str(
            self._tokenizer.apply_chat_template(list(demonstration.messages), tools=[*self._tools], tokenize=False)
        )
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False))
        weights = np.where(self._written(ids), 1.0, READ_WEIGHT).astype(np.float32)
        return Sample(self._renaming(demonstration.rename, rng)[ids], weights)

    def _token_ids(self, names: Sequence[str]) -> NDArray[np.int64]:
        return np.asarray(self._tokenizer.convert_tokens_to_ids([name_token(name) for name in names]))

    def _renaming(self, rename: str, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the token id that replaces each token id, (vocabulary,)."""
        table = np.arange(len(self._tokenizer))
        groups = {RENAME_ALL: [self._names], RENAME_ALIKE: [self._famous, self._obscure]}.get(rename, [])
        for group in groups:
            table[group] = rng.permutation(group)
        return table

    def _written(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask, True at tokens that the policy has to write: assistant turns with their end token."""
        written = np.zeros(len(ids), dtype=bool)
        inside, width = False, len(self._opening)
        for at, token in enumerate(ids):
            written[at] = inside
            if inside:
                inside = token != self._closing
            elif list(ids[at + 1 - width : at + 1]) == self._opening:
                inside = True
        return written


def warm_up(
    model: Qwen2ForCausalLM,
    maker: SampleMaker,
    *,
    drill: Callable[[], Demonstration],
    habit: Callable[[], Demonstration] | None = None,
    settings: WarmupSettings,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    sorted_together: int = 8,
) -> None:
    """Train ``model`` in place, on drills and then on habits; ``on_step`` is called after each step.

    So many batches as ``sorted_together`` says are filled together, each with samples of similar length. That saves
    padding; but if length and habit go together, the habits of the last batches are overrepresented. 1 mixes them.
    """
    rng = np.random.default_rng(seed)
    batches = [
        *_batches(drill, maker, settings.drill_steps, settings.batch_size, rng, sorted_together),
        *(_batches(habit, maker, settings.habit_steps, settings.batch_size, rng, sorted_together) if habit else ()),
    ]
    _train(model, batches, settings=settings, pad_id=maker.pad_id, seed=seed, on_step=on_step)


@contextlib.contextmanager
def torch_threads(count: int = 2) -> Generator[None]:
    """Compute with ``count`` threads inside the block: a fixed number, so that sums are reproducible."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(
    write: Callable[[], Demonstration],
    maker: SampleMaker,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    together: int,
) -> list[list[Sample]]:
    """Return ``steps`` batches; among ``together`` of them, group samples of similar length to reduce padding."""
    batches: list[list[Sample]] = []
    while len(batches) < steps:
        count = min(together, steps - len(batches))
        pool = sorted((maker(write(), rng) for _ in range(count * batch_size)), key=lambda s: len(s.ids))
        chunk = [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
        batches += [chunk[at] for at in rng.permutation(count)]
    return batches


def _collate(samples: Sequence[Sample], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad samples to one length: ids, attention mask and loss weights, each (batch, length)."""
    import torch

    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id)
    weights = torch.zeros((len(samples), length))
    mask = torch.zeros((len(samples), length), dtype=torch.long)
    for row, sample in enumerate(samples):
        end = len(sample.ids)
        ids[row, :end] = torch.from_numpy(sample.ids)
        weights[row, :end] = torch.from_numpy(sample.weights)
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "weights": weights}


def _train(
    model: Qwen2ForCausalLM,
    batches: Sequence[list[Sample]],
    *,
    settings: WarmupSettings,
    pad_id: int,
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """Run Hugging Face's Trainer over ready-made batches, in order."""
    from transformers import PrinterCallback, TrainerCallback

    class Step(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step()

    with tempfile.TemporaryDirectory(prefix="mtgrpo-warmup-") as folder:
        trainer = _trainer_class()(
            model=model,
            args=_arguments(folder, len(batches), settings, seed),
            train_dataset=[sample for batch in batches for sample in batch],
            data_collator=partial(_collate, pad_id=pad_id),
            callbacks=[Step()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _trainer_class() -> Any:
    """Return Hugging Face's Trainer with a weighted next-token loss, which takes samples in their order."""
    from torch.nn.functional import cross_entropy
    from torch.utils.data import SequentialSampler
    from transformers import Trainer

    class WeightedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            samples = self.train_dataset if train_dataset is None else train_dataset
            assert isinstance(samples, list)  # as it is given below
            return SequentialSampler(samples)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            weights = inputs.pop("weights")[:, 1:]
            outputs = model(**inputs, use_cache=False)
            logits, targets = outputs.logits[:, :-1].transpose(1, 2), inputs["input_ids"][:, 1:]
            loss = (cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
            return (loss, outputs) if return_outputs else loss

    return WeightedTrainer


def _arguments(folder: str, steps: int, settings: WarmupSettings, seed: int) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=settings.warmup_steps,
        adam_beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
