"""Carry transcripts from the agent loops to their readers: once, compressed, and only if something reads them.

A transcript contains the text of a rollout and of all passages that it found, ten to a hundred kilobytes. Once the
reward is known, only dumps (``trainer.rollout_data_dir``, ``trainer.validation_data_dir``) and estimators with a
parameter ``transcript`` read it. Under our trainers it has a separate column, :data:`COLUMN`, which they fetch for the
rows that they need. verl's trainers and custom samplers do not know this column, and their validation dumps contain
only ``reward_extra_info``, so under them the transcript is part of that.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import transfer_queue as tq
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.integration.advantage.fields import builds_our_buffer
from verl_mtgrpo.rewards import TRANSCRIPT, Transcript

COLUMN = "mtgrpo_transcript"
"""TransferQueue's column of packed transcripts (bytes), one per row."""

Destination = Literal["column", "info", "nowhere"]


def destination(config: Any) -> Destination:
    """Return where the agent loops of a run put transcripts once rewards are known.

    Args:
        config: verl's whole config.
    """
    if not builds_our_buffer(config):
        return "info"
    estimator = OmegaConf.select(config, "algorithm.adv_estimator")
    asked = estimator in ESTIMATORS and TRANSCRIPT in ESTIMATORS[estimator].fields
    dumps = ("trainer.rollout_data_dir", "trainer.validation_data_dir")
    return "column" if asked or any(OmegaConf.select(config, key) for key in dumps) else "nowhere"


def text_of_messages(messages: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return chat messages with only the type left of images, videos and sound.

    verl avoids storing them with a rollout, and a copy in each transcript would take megabytes.
    """
    return tuple({**message, "content": _text_of(message.get("content"))} for message in messages)


def _text_of(content: Any) -> Any:
    if isinstance(content, np.ndarray):  # lists come back from parquet as arrays
        content = content.tolist()
    if not isinstance(content, list | tuple):
        return content
    kept: list[Any] = []
    for part in content:
        if isinstance(part, str):
            kept.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text":
            kept.append({"type": "text", "text": str(part.get("text", ""))})
        else:
            kept.append({"type": str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__})
    return kept


def pack(transcript: Transcript) -> bytes:
    """Write a transcript as compressed JSON.

    Each passage is in it twice, as the search returned it and in the result that the model read, and every call and
    passage repeats the names of its fields. The fastest compression level removes most of that.
    """
    return zlib.compress(to_json(transcript.to_dict()).encode(), 1)


def unpack(packed: bytes) -> str:
    """Return the JSON that :func:`pack` wrote."""
    return zlib.decompress(packed).decode()


def to_json(transcript: Mapping[str, Any]) -> str:
    """Write ``Transcript.to_dict()`` as compact JSON that can be encoded even if a text has lone surrogates."""
    text = json.dumps(transcript, ensure_ascii=False, separators=(",", ":"), default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(transcript, separators=(",", ":"), default=str)
    return text


def fetch_transcripts(batch: KVBatchMeta) -> list[str | None]:
    """Return the transcript of each row of a batch as JSON, None for a row without one."""
    if not batch.keys:
        return []
    assert batch.partition_id is not None  # verl's batches name theirs
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[COLUMN])
    if COLUMN not in data:
        return [None] * len(batch.keys)
    packed: list[Any] = [getattr(item, "data", item) for item in data[COLUMN]]
    return [unpack(one) if one else None for one in packed]
