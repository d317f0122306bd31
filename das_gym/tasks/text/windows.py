"""Split documents into windows of tokens, the examples of language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from das_gym.commands.progress import progress
from das_gym.data.splits import LazySequence
from das_gym.tasks.text.documents import Document

DOCUMENTS_AT_A_TIME = 256
"""Documents that the tokenizer reads in one call."""


@dataclass(frozen=True, slots=True)
class WindowExample:
    """Some tokens of a document in a row.

    Attributes:
        key: The document's key, and the position of the window's first token in it.
        ids: The tokens, after those that the tokenizer puts before every text.
    """

    key: str
    ids: tuple[int, ...]


def split_into_windows(documents: Sequence[Document], tokenizer: Any, context: int) -> LazySequence[WindowExample]:
    """Return the windows of documents, in order.

    A window has `context` tokens, and begins with the special tokens that the tokenizer puts before every text, if there are
    any. The rest of a document that fills no window is left out, so that all windows count equally in a mean over tokens; a
    document shorter than a window is one shorter window.

    Args:
        documents: The documents.
        tokenizer: A tokenizer of transformers.
        context: Tokens of a window.

    Raises:
        ValueError: `context` leaves no token to predict.
    """
    begin = beginning_of(tokenizer)
    size = context - len(begin)
    if size < 2 - bool(begin):
        raise ValueError(f"`context` is too small: got {context}, expected at least {2 + len(begin) - bool(begin)} tokens")
    places: list[tuple[str, np.ndarray, int]] = []
    with progress(len(documents), "reading text", unit="document") as bar:
        for start in range(0, len(documents), DOCUMENTS_AT_A_TIME):
            chunk = documents[start : start + DOCUMENTS_AT_A_TIME]
            # Text is text: a `</s>` in it does not end the document. Texts are longer than the model's maximum.
            plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            for document, ids in zip(chunk, tokenizer([d.text for d in chunk], **plain)["input_ids"], strict=True):
                tokens = np.array(ids, dtype=np.int32)
                if len(tokens) + len(begin) >= 2:
                    last = max(len(tokens) - size, 0)
                    places += [(document.key, tokens, place) for place in range(0, last + 1, size)]
            bar.update(len(chunk))

    def window(item: tuple[str, np.ndarray, int]) -> WindowExample:
        key, tokens, place = item
        return WindowExample(f"{key}:{place}", (*begin, *tokens[place : place + size].tolist()))

    return LazySequence(places, window)


def beginning_of(tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before every text, such as `<s>`."""
    whole = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    count = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return tuple(whole[:count])
