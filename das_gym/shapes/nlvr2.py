"""Shapes-NLVR2: statements about pairs of scenes, generated from a seed and written in NLVR2's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from das_gym.files import absolute
from das_gym.shapes.pair_language import STATEMENT_FAMILIES, StatementSet, sample_set
from das_gym.shapes.scenes import render
from das_gym.shapes.writing import bundled_root, check_counts, new_data_set

VERSION = 1
"""Names the folder in the cache. Raise it with every change of images or statements, so that no stale folder is read."""

DIRECTORIES = 9
DIRECTORY_SETS = 125
TEST_SETS = 190
"""Directories of train, and sets of statements in each of them and in test1. A set has eight statements."""


def write_shapes_nlvr2(
    folder: str | Path,
    seed: int = 0,
    directories: int = DIRECTORIES,
    directory_sets: int = DIRECTORY_SETS,
    test_sets: int = TEST_SETS,
) -> Path:
    """Write Shapes-NLVR2 in NLVR2's format: `train.json`, `test1.json` and a folder `images` of PNG files.

    A set is four pairs of images and two sentences, each true of two of the pairs. The same arguments write the same data.
    `folder` is new or empty. Train has two directories or more: the reader takes one or more of them as the reward split.
    """
    folder = absolute(folder)
    train_sets = directories * directory_sets
    check_counts(0, seed=seed)
    check_counts(1, directory_sets=directory_sets, test_sets=test_sets)
    check_counts(2, directories=directories)
    train_rng, test_rng = np.random.default_rng(seed).spawn(2)
    with new_data_set(folder, "Shapes-NLVR2", train_sets + test_sets, "set") as (partial, bar):
        _write_split(partial, "train", [str(n // directory_sets) for n in range(train_sets)], train_rng, bar)
        _write_split(partial, "test1", [""] * test_sets, test_rng, bar)
    return folder


def _write_split(folder: Path, split: str, directories: list[str], rng: np.random.Generator, bar: tqdm) -> None:
    """Write a set of images and statements for each entry of `directories`; `` is the folder of the split itself."""
    # Every pair of families in turn, so that all are equally frequent.
    families = list(combinations_with_replacement(STATEMENT_FAMILIES, 2))
    lines: list[str] = []
    for number, directory in enumerate(directories):
        drawn = sample_set(rng, families[number % len(families)])
        images = folder / "images" / split / directory
        images.mkdir(parents=True, exist_ok=True)
        for pair_number, pair in enumerate(drawn.pairs):
            for side, scene in enumerate((pair.left, pair.right)):
                render(scene).save(images / f"{split}-{number}-{pair_number}-img{side}.png")
        lines += map(json.dumps, _entries(f"{split}-{number}", directory, drawn))
        bar.update()
    (folder / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _entries(name: str, directory: str, drawn: StatementSet) -> Iterator[dict[str, Any]]:
    """Yield NLVR2's entries; `family` is our own field."""
    for number, pair in enumerate(drawn.pairs):
        for which, (statement, truth) in enumerate(zip(drawn.statements, pair.truths, strict=True)):
            entry = {"sentence": statement.text, "label": str(truth), "identifier": f"{name}-{number}-{which}"}
            yield {**entry, **({"directory": directory} if directory else {}), "family": statement.family}


def shapes_nlvr2_root(cache: str | Path | None = None) -> Path:
    """Return the bundled Shapes-NLVR2, a `data_root`, which is written on first use (less than a minute)."""
    return bundled_root(f"shapes-nlvr2-{VERSION}", write_shapes_nlvr2, "Shapes-NLVR2", cache)
