"""Turn texts into vectors, for dense indexes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from verl_mtgrpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    Encoder = Callable[[list[str]], np.ndarray]
    """Texts -> vectors of shape (texts, dimension)."""

_E5 = re.compile(r"(^|[-_])e5-(small|base|large)", re.IGNORECASE)


class SentenceEncoder:
    """A sentence-transformers model, loaded at its first use and then kept.

    Vectors of a model that compares by cosine have length 1, so that inner products are cosines.

    Args:
        model: Name of a model on the Hugging Face hub, or a local folder.
        query_prefix: Text put before every query; None for the model's own prompt, if it has one.
        passage_prefix: The same for passages.

    Raises:
        ConfigError: No prefix is given for a model of the E5 family, which was trained with them.
    """

    def __init__(self, model: str, query_prefix: str | None, passage_prefix: str | None) -> None:
        if _E5.search(Path(model).name) and (query_prefix is None or passage_prefix is None):
            raise ConfigError(
                f"{model} looks like an E5 model, which was trained with a prefix on every text",
                fix=(
                    "give the query prefix 'query: ' and the passage prefix 'passage: ' (on the command line "
                    "--query-prefix and --passage-prefix), or empty ones if this model has none"
                ),
            )
        self._name = model
        self._prefix = {"query": query_prefix, "document": passage_prefix}
        self._model: Any = None
        # Fast tokenizers refuse to be used by two threads at once.
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str], kind: Literal["query", "document"]) -> np.ndarray:
        """Return the vectors of ``texts``, float32, of shape (texts, dimension)."""
        with self._lock:
            if self._model is None:
                self._model = _load(self._name)
            function = self._model.encode_query if kind == "query" else self._model.encode_document
            return function(
                list(texts),
                prompt=self._prefix[kind],
                normalize_embeddings=self._model.similarity_fn_name == "cosine",
                show_progress_bar=False,
            )


def _load(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            f"dense retrieval with a model needs sentence-transformers ({error})",
            fix="pip install 'verl-mtgrpo[dense]'",
        ) from error
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the model {name!r} cannot be loaded ({error})",
            fix=(
                "give the name of a sentence-transformers model on the Hugging Face hub, or, without network, a local "
                "folder with one"
            ),
        ) from error


def check_vectors(vectors: Any, count: int, dimension: int | None, what: str, start: int = 0) -> np.ndarray:
    """Return the vectors as float32; raise unless they are ``count`` finite ones of length ``dimension`` (None: any).

    ``start`` is the number of the first one, for error messages.
    """
    import numpy as np

    array = np.asarray(vectors)
    expected = f"({count}, {dimension or 'dimension'})"
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] != (dimension or array.shape[1]):
        raise DataError(f"{what} have the shape {array.shape}", expected=f"{expected}: one vector for each text")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{what} are of the type {array.dtype}", expected="numbers")
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        row = start + int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise DataError(f"{what} hold NaN or infinity (first in row {row})", fix="check the model that made them")
    return array
