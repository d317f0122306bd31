"""Shapes-captions: Karpathy's format, and captions that distinguish images."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from das_gym.models.inputs import load_tokenizer
from das_gym.shapes import captions
from das_gym.shapes.captions import draw_split, shapes_captions_root, write_shapes_captions
from das_gym.shapes.scenes import COLORS, SHAPES
from das_gym.shapes.writing import NewImages
from das_gym.tasks.retrieval.captions import NUM_TEXTS
from das_gym.tasks.retrieval.karpathy import load_flickr30k

FEW = {"train": 12, "val": 30, "test": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_captions(tmp_path_factory.mktemp("captions") / "data", seed=3, scenes=FEW)


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "dataset_shapes.json").read_text())["images"]


def test_written_data_are_read_back(folder: Path):
    splits = load_flickr30k(folder, "skip")  # decodes every image
    assert splits.left_out == ()
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [60, 150, 100]
    for example in splits.test[:10]:
        assert len(set(example.texts)) == NUM_TEXTS
        assert example.texts[1:4] == example.hard_negatives
        assert example.image.open().size == (96, 96)


def test_write_shapes_captions_has_karpathys_format(folder: Path):
    entries = read(folder)
    assert [entry["imgid"] for entry in entries] == list(range(62))
    for entry in entries:
        assert set(entry) == {"sentids", "imgid", "sentences", "split", "filename"}
        assert [s["sentid"] for s in entry["sentences"]] == entry["sentids"]
        assert len({s["raw"] for s in entry["sentences"]}) == 5
        assert all(s["imgid"] == entry["imgid"] for s in entry["sentences"])
    assert entries[0]["sentences"][0]["tokens"] == entries[0]["sentences"][0]["raw"][:-1].replace(",", "").split()


@pytest.mark.parametrize("alone", [True, False])
def test_unique_captions_are_true_of_one_scene(alone: bool):
    drawn = list(draw_split(np.random.default_rng(0), 60, alone, NewImages()))
    shared = [
        (str(caption), other)
        for number, (_, _, own) in enumerate(drawn)
        for caption in own
        for other in range(len(drawn))
        if other != number and caption.maybe(drawn[other][0])
    ]
    assert bool(shared) is not alone  # training scenes may share captions


def test_bundled_tokenizer_knows_all_words(folder: Path, mini_folder: Path):
    tokenizer = load_tokenizer(mini_folder)
    known = {"a", "left", "right", "of", "above", "below", "objects", *COLORS, *SHAPES, *"2345"}
    known |= {"circles", "squares", "triangles", "stars", "crosses"}
    texts = [text for e in read(folder) for s in e["sentences"] for text in (s["raw"], *s["hard_negatives"])]
    for text in texts:
        words = text[:-1].replace(",", "").split()
        assert known.issuperset(words)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(words) + 4  # every word is one token; comma, full stop, <s> and </s>
        assert len(ids) <= 16


def test_same_arguments_write_the_same_data(folder: Path, tmp_path: Path):
    again = write_shapes_captions(tmp_path / "again", seed=3, scenes=FEW)
    for path in sorted(folder.rglob("*.*")):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()
    other = write_shapes_captions(tmp_path / "other", seed=4, scenes=FEW)
    assert read(other)[0]["sentences"] != read(folder)[0]["sentences"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"seed": -1}, "seed"), ({"scenes": {"train": 4, "val": 4, "test": 3}}, "test"), ({"scenes": {"train": 4}}, "val")],
)
def test_numbers_out_of_range_are_named(tmp_path: Path, arguments: dict, name: str):
    with pytest.raises(ValueError, match=f"`{name}`"):
        write_shapes_captions(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_root_is_written_once_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write_shapes_captions, "__defaults__", (0, {"train": 4, "val": 4, "test": 4}))
    with ThreadPoolExecutor(3) as pool:
        roots = list(pool.map(shapes_captions_root, [tmp_path] * 3))
    assert set(roots) == {tmp_path / f"shapes-captions-{captions.VERSION}"}
    stamp = (roots[0] / "dataset_shapes.json").stat().st_mtime_ns
    assert (shapes_captions_root(tmp_path) / "dataset_shapes.json").stat().st_mtime_ns == stamp
