"""Read SNLI-VE from arrow tables, as METER's script writes them.

A row is an image with its pairs of sentences, premise and hypothesis, and their labels, indices into `LABELS`. The
tables lack `pairID`: the key of an example is its place in its table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from das_gym.data.arrow import ArrowFormat, ArrowImage, read_items
from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import check_text
from das_gym.data.splits import Splits
from das_gym.tasks.snli_ve.files import LABELS, PARTS, SNLIVEExample

TABLES = ArrowFormat(
    "snli_ve",
    prefixes=("snli",),
    columns={"image": "bytes", "sentences": "list of list of text", "labels": "list of integer"},
    raw=("snli_ve_*.jsonl", "data/snli_ve_*.jsonl"),
)


def load_arrow_snli_ve(data_root: str | Path, on_bad_example: str = "raise") -> Splits[SNLIVEExample]:
    """Read the tables; arguments and errors are those of `Task.load_splits`."""
    tables, bad = TABLES.find(data_root), BadExamples(on_bad_example)

    def read(part: str) -> tuple[SNLIVEExample, ...]:
        path = tables.require(part)

        def example(item: dict[str, Any], where: str) -> SNLIVEExample:
            pair, label = item["sentences"], item["labels"]
            if pair is None or len(pair) != 2:
                raise ValueError(f"{where}: wrong `sentences`: got {pair!r:.60}, expected a premise and a hypothesis")
            if label is None or not 0 <= label < len(LABELS):
                raise ValueError(
                    f"{where}: wrong `labels`: got {label}, expected 0..{len(LABELS) - 1} for {', '.join(LABELS)}"
                )
            key = f"{part}-{item['row']}-{item['number']}"
            return SNLIVEExample(key, check_text(pair[1], where), ArrowImage(path, item["row"]), label)

        parsed = bad.parse(read_items(path, TABLES.columns, bad), example)
        return tuple(bad.drop_broken(parsed, str(path), lambda e: (e.image,), lambda e: e.key))

    train, reward, test = map(read, PARTS)
    return bad.splits(train, reward, test)
