"""Shapes-NLVR2: statements about pairs of scenes, generated from a seed and written in NLVR2's own format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.files import whole_folder
from das_gym.progress import Progress, progress
from das_gym.shapes.pair_language import STATEMENT_FAMILIES, StatementSet, sample_set
from das_gym.shapes.scenes import Scene, render
from das_gym.shapes.writing import bundled_root, new_folder

VERSION = 1
"""Names the folder in the cache. Raise it with every change to what is drawn or said, so that no stale folder is read."""

DIRECTORIES, DIRECTORY_SETS, TEST_SETS = 9, 125, 190
"""Directories of train, and sets of statements in each of them and in test1. A set has eight statements."""


def write_shapes_nlvr2(
    folder: str | Path,
    seed: int = 0,
    directories: int = DIRECTORIES,
    directory_sets: int = DIRECTORY_SETS,
    test_sets: int = TEST_SETS,
) -> Path:
    """Write Shapes-NLVR2 as NLVR2 has it: `train.json`, `test1.json` and a folder `images` of PNG files.

    A set is four pairs of images and two sentences, each true of two of the pairs. The families of sentences come in
    turn. The same arguments write the same data. The folder appears whole or not at all.

    Args:
        folder: Where to write; a new or an empty folder.
        seed: Seed of everything that is drawn, 0 or more.
        directories: Directories of train, 2 or more: the reader keeps one or more of them to score masks on.
        directory_sets: Sets in each of them, 1 or more.
        test_sets: Sets of test1, 1 or more.

    Returns:
        The folder, absolute.

    Raises:
        FileExistsError: The folder holds something.
        ValueError: A number is out of its range.
    """
    least = {"seed": (seed, 0), "directories": (directories, 2), "directory_sets": (directory_sets, 1)}
    for name, (value, lowest) in {**least, "test_sets": (test_sets, 1)}.items():
        if value < lowest:
            raise ValueError(f"{name}={value}; use {lowest} or more")
    folder = new_folder(folder)
    train_rng, test_rng = np.random.default_rng(seed).spawn(2)
    with whole_folder(folder) as partial:
        with progress(directories * directory_sets, "drawing Shapes-NLVR2 train", unit="set") as bar:
            places = [str(n // directory_sets) for n in range(directories * directory_sets)]
            _write_split(partial, "train", places, train_rng, bar)
        with progress(test_sets, "drawing Shapes-NLVR2 test1", unit="set") as bar:
            _write_split(partial, "test1", [""] * test_sets, test_rng, bar)
    return folder


def _write_split(folder: Path, split: str, directories: list[str], rng: np.random.Generator, bar: Progress) -> None:
    """The images and statements of as many sets as directories are named; `` is the folder of the split itself."""
    families = list(combinations_with_replacement(STATEMENT_FAMILIES, 2))
    lines: list[str] = []
    for number, directory in enumerate(directories):
        drawn = sample_set(rng, families[number % len(families)])
        images = folder / "images" / split / directory
        images.mkdir(parents=True, exist_ok=True)
        _write_images(images, f"{split}-{number}", drawn)
        lines += (json.dumps(entry) for entry in _entries(f"{split}-{number}", directory, drawn))
        bar.update()
    (folder / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_images(folder: Path, name: str, drawn: StatementSet) -> None:
    for number, pair in enumerate(drawn.pairs):
        scenes: tuple[Scene, Scene] = (pair.left, pair.right)
        for side, scene in enumerate(scenes):
            render(scene).save(folder / f"{name}-{number}-img{side}.png")


def _entries(name: str, directory: str, drawn: StatementSet) -> Iterator[dict[str, Any]]:
    """NLVR2's entries, `family` being ours."""
    for number, pair in enumerate(drawn.pairs):
        for which, (statement, truth) in enumerate(zip(drawn.statements, pair.truths, strict=True)):
            entry = {"sentence": statement.text, "label": str(truth), "identifier": f"{name}-{number}-{which}"}
            where = {"directory": directory} if directory else {}
            yield {**entry, **where, "family": statement.family}


def shapes_nlvr2_root(cache: str | Path | None = None) -> Path:
    """The bundled Shapes-NLVR2, a `data_root`, written on first use (less than a minute); see `bundled_root`."""
    return bundled_root(f"shapes-nlvr2-{VERSION}", write_shapes_nlvr2, "Shapes-NLVR2", cache)
