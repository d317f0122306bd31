"""Shapes-captions: what is written is what the reader reads, and captions tell images apart."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from das_gym import files
from das_gym.models.inputs import load_tokenizer
from das_gym.shapes import captions as shapes_captions
from das_gym.shapes.captions import _draw_split, shapes_captions_root, write_shapes_captions
from das_gym.shapes.scenes import COLORS, SHAPES
from das_gym.shapes.writing import NewPictures
from das_gym.tasks.retrieval.captions import NUM_TEXTS
from das_gym.tasks.retrieval.karpathy import load_flickr30k

FEW = {"train": 12, "val": 30, "test": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_captions(tmp_path_factory.mktemp("captions") / "data", seed=3, scenes=FEW)


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "dataset_shapes.json").read_text())["images"]


def test_the_reader_reads_it(folder: Path):
    splits = load_flickr30k(folder, "skip")  # decodes every image
    assert splits.left_out == ()
    assert [len(part) for part in (splits.train, splits.reward, splits.test)] == [60, 150, 100]
    for example in splits.test[:10]:
        assert len(set(example.texts)) == NUM_TEXTS
        assert example.texts[1:4] == example.hard_negatives
        assert example.image.open().size == (96, 96)


def test_entries_are_karpathys(folder: Path):
    entries = read(folder)
    assert [entry["imgid"] for entry in entries] == list(range(62))
    for entry in entries:
        assert set(entry) == {"sentids", "imgid", "sentences", "split", "filename"}
        assert [s["sentid"] for s in entry["sentences"]] == entry["sentids"]
        assert len({s["raw"] for s in entry["sentences"]}) == 5
        assert all(s["imgid"] == entry["imgid"] for s in entry["sentences"])
    assert entries[0]["sentences"][0]["tokens"] == entries[0]["sentences"][0]["raw"][:-1].replace(",", "").split()


def test_no_picture_and_no_caption_occurs_twice(folder: Path):
    entries = read(folder)
    pictures = {hashlib.sha256((folder / "images" / e["filename"]).read_bytes()).digest() for e in entries}
    assert len(pictures) == 62
    for split in ("val", "test"):
        texts = [s["raw"] for e in entries if e["split"] == split for s in e["sentences"]]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("alone", [True, False])
def test_captions_that_are_true_of_one_scene_alone(alone: bool):
    drawn = list(_draw_split(np.random.default_rng(0), 60, alone, NewPictures()))
    shared = [
        (str(caption), other)
        for number, (_, _, captions) in enumerate(drawn)
        for caption in captions
        for other in range(len(drawn))
        if other != number and caption.maybe(drawn[other][0])
    ]
    assert bool(shared) is not alone  # nobody looks at what training scenes share


def test_words_and_length_are_those_of_the_bundled_tokenizer(folder: Path, mini_folder: Path):
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


def test_same_arguments_same_data(folder: Path, tmp_path: Path):
    again = write_shapes_captions(tmp_path / "again", seed=3, scenes=FEW)
    for path in sorted(folder.rglob("*.*")):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()
    other = write_shapes_captions(tmp_path / "other", seed=4, scenes=FEW)
    assert read(other)[0]["sentences"] != read(folder)[0]["sentences"]


def test_refuses(folder: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="exists already; data is written to a new or an empty folder"):
        write_shapes_captions(folder)
    with pytest.raises(ValueError, match="seed=-1; a seed is 0 or more"):
        write_shapes_captions(tmp_path / "x", seed=-1)
    for scenes in ({"train": 4, "val": 4, "test": 3}, {"train": 4, "val": 4}):
        with pytest.raises(ValueError, match="give train, val, test, 4 or more of each"):
            write_shapes_captions(tmp_path / "x", scenes=scenes)
    assert not (tmp_path / "x").exists()


def test_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shapes_captions.write_shapes_captions, "__defaults__", (0, {"train": 4, "val": 4, "test": 4}))
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True, text=True
    )
    name = f"shapes-captions-{shapes_captions.VERSION}"
    left = tmp_path / f".{name}.{files._HOST}-{dead.stdout.strip()}-0.part"
    left.mkdir()
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(shapes_captions_root(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {tmp_path / f"shapes-captions-{shapes_captions.VERSION}"}
    assert not left.exists()
    stamp = (found[0] / "dataset_shapes.json").stat().st_mtime_ns
    assert (shapes_captions_root(tmp_path) / "dataset_shapes.json").stat().st_mtime_ns == stamp


def test_a_cache_that_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to .*set DAS_GYM_CACHE to a writable folder"):
        shapes_captions_root(tmp_path / "file")
