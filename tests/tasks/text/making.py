"""Small texts of words that the tiny tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.models.transformers import tiny


def text_folder(folder: Path, documents: int = 40) -> Path:
    """A folder with JSON lines of 5 to 60 words."""
    words, rng = tiny.WORDS.split(), np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(5, 60, documents)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return folder
