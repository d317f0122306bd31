"""Shapes-NLVR2 on disk: NLVR2's format, the same for a seed, whole or not at all."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from das_gym.shapes import nlvr2 as shapes_nlvr2
from das_gym.shapes.nlvr2 import shapes_nlvr2_root, write_shapes_nlvr2
from das_gym.shapes.pair_language import STATEMENT_FAMILIES
from das_gym.tasks.nlvr2.files import NLVR2Example, load_nlvr2

TEXT_OF_VERSION = {1: "2558a45961de38bd"}
"""Digest of the statements and labels of a small set, by shapes_nlvr2.VERSION."""


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_nlvr2(tmp_path_factory.mktemp("data") / "small", directories=3, directory_sets=5, test_sets=15)


@pytest.mark.parametrize(("split", "sets"), [("train", 15), ("test1", 15)])
def test_files_are_nlvr2s(small: Path, split: str, sets: int):
    entries = lines(small, f"{split}.json")
    extra = {"directory"} if split == "train" else set()
    assert {frozenset(entry) for entry in entries} == {frozenset({"sentence", "label", "identifier", "family"} | extra)}
    numbers = [(n, pair, sentence) for n in range(sets) for pair in range(4) for sentence in range(2)]
    assert [entry["identifier"] for entry in entries] == [f"{split}-{n}-{pair}-{s}" for n, pair, s in numbers]
    assert Counter(entry["label"] for entry in entries) == {"True": 4 * sets, "False": 4 * sets}
    assert {entry["family"] for entry in entries} == set(STATEMENT_FAMILIES)
    if split == "train":
        assert [entry["directory"] for entry in entries] == [str(n // 5) for n, _, _ in numbers]
    folder = small / "images" / split
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    in_directory = {n: f"{n // 5}/" if split == "train" else "" for n in range(sets)}
    assert there == {f"{in_directory[n]}{split}-{n}-{p}-img{i}.png" for n, p, _ in numbers for i in (0, 1)}


def test_images_are_96_pixel_pngs_and_none_occurs_twice(small: Path):
    paths = sorted(small.rglob("*.png"))
    with Image.open(paths[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))
    assert len({path.read_bytes() for path in paths}) == len(paths) == 30 * 8


def test_what_is_written_is_read_back(small: Path):
    splits = load_nlvr2(small)
    assert (len(splits.train), len(splits.reward), len(splits.test)) == (80, 40, 120)
    assert {example.identifier: str(example.label) for example in splits.test} == {
        entry["identifier"]: entry["label"] for entry in lines(small, "test1.json")
    }
    by_sentence: defaultdict[str, list[NLVR2Example]] = defaultdict(list)
    for example in splits.test:
        by_sentence[example.set_id].append(example)
    assert len(by_sentence) == 30
    for examples in by_sentence.values():
        assert len({example.sentence for example in examples}) == 1
        assert Counter(example.label for example in examples) == {True: 2, False: 2}


def test_same_arguments_same_bytes(small: Path, tmp_path: Path):
    again = write_shapes_nlvr2(str(tmp_path / "again"), directories=3, directory_sets=5, test_sets=15)
    assert contents(again) == contents(small)
    other = write_shapes_nlvr2(tmp_path / "other", seed=1, directories=3, directory_sets=5, test_sets=15)
    assert set(contents(other)) == set(contents(small))
    assert not set(contents(other).values()) & set(contents(small).values())


def test_test1_does_not_depend_on_the_size_of_train(small: Path, tmp_path: Path):
    fewer = write_shapes_nlvr2(tmp_path / "fewer", directories=2, directory_sets=1, test_sets=15)
    assert {n: c for n, c in contents(fewer).items() if "test1" in n} == {
        n: c for n, c in contents(small).items() if "test1" in n
    }


def test_a_changed_generator_needs_a_new_version(small: Path):
    """Fails when statements change: raise shapes_nlvr2.VERSION, or users read stale data, and put the digest here."""
    text = [(entry["sentence"], entry["label"]) for name in ("train", "test1") for entry in lines(small, f"{name}.json")]
    assert TEXT_OF_VERSION[shapes_nlvr2.VERSION] == blake2b(repr(text).encode()).hexdigest()[:16]


def test_off_a_terminal_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_shapes_nlvr2(tmp_path / "data", directories=2, directory_sets=1, test_sets=1)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1; use 0 or more"),
        ({"directories": 1}, "directories=1; use 2 or more"),
        ({"directory_sets": 0}, "directory_sets=0; use 1 or more"),
        ({"test_sets": 0}, "test_sets=0; use 1 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        write_shapes_nlvr2(tmp_path / "data", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_error_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(rng: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(STATEMENT_FAMILIES, "attribute", refuse)
    with pytest.raises(KeyboardInterrupt):
        write_shapes_nlvr2(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_refused(small: Path):
    with pytest.raises(FileExistsError, match="small exists already"):
        write_shapes_nlvr2(small)


def test_the_root_is_in_the_cache_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = tmp_path / f"shapes-nlvr2-{shapes_nlvr2.VERSION}"
    written.mkdir()
    assert shapes_nlvr2_root(tmp_path) == written
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path))
    assert shapes_nlvr2_root() == written
    assert not list(written.iterdir())


def test_the_root_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write_shapes_nlvr2, "__defaults__", (0, 2, 1, 1))
    root = shapes_nlvr2_root(tmp_path / "cache")
    assert len(load_nlvr2(root).test) == 8
    assert sorted(path.name for path in root.iterdir()) == ["images", "test1.json", "train.json"]
