"""NLVR2's reader on folders in the official layout, whole and broken in many ways."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.tasks.nlvr2.files import load_nlvr2, reward_buckets

Entry = dict[str, Any]
DIRECTORIES = (0, 7, 12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "cache"))


def write_lines(path: Path, entries: list[Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def change(path: Path, line: int, edit: Callable[[Entry], object]) -> None:
    """Edit one entry; lines count from 1."""
    rows = path.read_text(encoding="utf-8").splitlines()
    entry = json.loads(rows[line - 1])
    edit(entry)
    rows[line - 1] = json.dumps(entry)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def entry(identifier: str, label: str, **more: Any) -> Entry:
    """An official entry, with keys that nobody reads."""
    return {"sentence": f"About {identifier[-3:]}.", "label": label, "identifier": identifier, "synset": "owl", **more}


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (len(path.name), 90, 30)).save(path, format="PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sets in each directory of train and in test1, with two pairs and two sentences each; a dev split besides."""
    folder = tmp_path / "nlvr2"
    train = [
        entry(f"train-{number}-{pair}-{s}", str((pair + s) % 2 == 0), directory=directory)
        for number, directory in enumerate(sorted((*DIRECTORIES, *DIRECTORIES)))
        for pair in (0, 1)
        for s in (0, 1)
    ]
    write_lines(folder / "train.json", train)
    for row in train:
        for side in (0, 1):
            draw(folder / "images" / "train" / str(row["directory"]) / f"{row['identifier'][:-2]}-img{side}.png")
    for split in ("dev", "test1"):
        write_lines(folder / f"{split}.json", [entry(f"{split}-{n}-0-0", str(n == 1)) for n in (1, 2)])
        for n, side in ((1, 0), (1, 1), (2, 0), (2, 1)):
            draw(folder / split / f"{split}-{n}-0-img{side}.png")
    return folder


def test_examples_in_the_order_of_the_file(root: Path):
    (root / "test1.json").unlink()
    first, second = load_nlvr2(root).test
    assert (first.identifier, first.sentence, first.label) == ("dev-1-0-0", "About 0-0.", True)
    assert first.images == tuple(ImageFile(root / "dev" / f"dev-1-0-img{side}.png") for side in (0, 1))
    assert (second.key, second.label) == ("dev-2-0-0", False)
    assert all(image.open().size == (12, 8) for image in second.images)


def test_the_parts_are_disjoint_and_whole_directories_are_kept_for_reward(root: Path):
    splits = load_nlvr2(str(root))
    chosen = reward_buckets(map(str, DIRECTORIES))
    assert len(chosen) == 1
    directories = {
        part: {Path(image.key).parent.name for example in getattr(splits, part) for image in example.images}
        for part in ("train", "reward")
    }
    assert directories == {"train": set(map(str, DIRECTORIES)) - chosen, "reward": chosen}
    assert (len(splits.train), len(splits.reward)) == (16, 8)
    assert [example.identifier for example in splits.test] == ["test1-1-0-0", "test1-2-0-0"]
    assert splits.left_out == ()


def test_test_is_dev_where_there_is_no_test1(root: Path):
    (root / "test1.json").unlink()
    assert [example.identifier for example in load_nlvr2(root).test] == ["dev-1-0-0", "dev-2-0-0"]


def test_reward_buckets_are_a_tenth_and_the_same_for_ever():
    names = [str(number) for number in range(100)]
    assert sorted(map(int, reward_buckets(names))) == [6, 18, 29, 47, 55, 66, 71, 72, 90, 99]
    assert reward_buckets(reversed(names)) == reward_buckets(names)
    assert [len(reward_buckets(names[:n])) for n in (2, 3, 14, 16, 25)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("folder", ["data", "nlvr2/data", "nlvr/nlvr2/data"])
def test_the_official_repositorys_folders_are_looked_into(root: Path, folder: str):
    (root / folder).mkdir(parents=True)
    for path in root.glob("*.json"):
        path.rename(root / folder / path.name)
    assert len(load_nlvr2(root).train) == 16


def test_images_with_and_without_the_folder_images(root: Path):
    (root / "images" / "train").rename(root / "train")
    (root / "test1").rename(root / "images" / "test1")
    splits = load_nlvr2(root)
    assert Path(splits.train[0].images[0].key).parent.parent == root / "train"
    assert Path(splits.test[0].images[0].key).parent == root / "images" / "test1"


def test_consistency_is_over_pairs_with_the_same_sentence(root: Path):
    splits = load_nlvr2(root)
    of_a_set = sorted(e.set_id for e in (*splits.train, *splits.reward) if e.identifier.startswith("train-3-"))
    assert of_a_set == ["train-3-0", "train-3-0", "train-3-1", "train-3-1"]


def test_blank_lines_a_byte_order_mark_and_strange_characters_are_no_harm(root: Path):
    path = root / "dev.json"
    change(path, 1, lambda e: e.update(sentence="zwei Käuze\u2028links, 梟が二羽"))
    raw = json.loads(path.read_text().splitlines()[0])
    lines = ["", json.dumps(raw, ensure_ascii=False), "  ", "\t", *path.read_text().splitlines()[1:], ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (root / "test1.json").unlink()
    assert [e.sentence for e in load_nlvr2(root).test] == ["zwei Käuze\u2028links, 梟が二羽", "About 0-0."]


def test_any_picture_that_calls_itself_png(root: Path):
    names = [root / "dev" / f"dev-{n}-0-img{side}.png" for n in (1, 2) for side in (0, 1)]
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., :3]).save(names[0], format="JPEG")
    Image.fromarray(pixels[..., 0]).save(names[1], format="PNG")
    Image.frombytes("CMYK", (30, 40), pixels.tobytes()).save(names[2], format="JPEG")
    Image.new("RGB", (5000, 3000)).save(names[3], format="PNG")
    for policy in ("raise", "skip"):
        (root / "test1.json").unlink(missing_ok=True)
        splits = load_nlvr2(root, policy)
        assert splits.left_out == ()
        assert [image.open().mode for example in splits.test for image in example.images] == ["RGB"] * 4


def test_train_needs_two_directories(root: Path):
    path = root / "train.json"
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    with pytest.raises(ValueError, match=r"train.json: all entries have the directory '0'; whole directories are kept from"):
        load_nlvr2(root)


@pytest.mark.parametrize("directory", ["..", "a/b", "", "a\\b"])
def test_a_directory_must_be_one_folder(root: Path, directory: str):
    change(root / "train.json", 3, lambda e: e.update(directory=directory))
    with pytest.raises(ValueError, match=r"train.json: line 3 has directory='.*'; it must be the name of a folder"):
        load_nlvr2(root)


BAD_ENTRIES: dict[str, tuple[Callable[[Entry], object], str]] = {
    "no sentence": (lambda e: e.pop("sentence"), "has no 'sentence'; it needs identifier, sentence, label, and has label"),
    "no label": (lambda e: e.pop("label"), "has no 'label'"),
    "no identifier": (lambda e: e.pop("identifier"), "has no 'identifier'"),
    "label": (lambda e: e.update(label="true"), r"\(dev-2-0-0\) has the label 'true'; it must be True or False"),
    "label type": (lambda e: e.update(label=1), "has label=1; it must be of type str"),
    "empty sentence": (lambda e: e.update(sentence=" \n"), r"\(dev-2-0-0\): sentence is empty"),
    "half a character": (lambda e: e.update(sentence="a \ud83d b"), r"\(dev-2-0-0\): sentence is .*which is no valid text"),
    "sentence type": (lambda e: e.update(sentence=None), "has sentence=None; it must be of type str"),
    "identifier": (
        lambda e: e.update(identifier="dev-2-0"),
        "has the identifier 'dev-2-0'; it must be dev-set-pair",
    ),
    "other split": (lambda e: e.update(identifier="train-2-0-0"), "has the identifier 'train-2-0-0'; it must be dev-"),
    "repeated": (lambda e: e.update(identifier="dev-1-0-0"), "repeats the identifier dev-1-0-0 of line 1; every one must"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_named_and_can_be_left_out(root: Path, name: str):
    edit, message = BAD_ENTRIES[name]
    change(root / "dev.json", 2, edit)
    (root / "test1.json").unlink()
    with pytest.raises(ValueError, match=rf"dev.json: line 2 {message}.*on_bad_example=\"skip\""):
        load_nlvr2(root)
    splits = load_nlvr2(root, "skip")
    assert [example.identifier for example in splits.test] == ["dev-1-0-0"]
    (line,) = splits.left_out
    assert "dev.json: line 2 " in line
    assert (len(splits.train), len(splits.reward)) == (16, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"sentence": "half', r"dev.json: line 2 is not whole JSON in UTF-8 \(Unterminated string"),
        (b'{"sentence": "\xff\xfe"}', r"dev.json: line 2 is not whole JSON in UTF-8 \('utf-8' codec"),
        (b'{"a": ' + b"[" * 100_000, r"dev.json: line 2 is not whole JSON in UTF-8 \(maximum recursion depth"),
        (b"[1, 2]", r"dev.json: line 2 is \[1, 2\]; it must be an object with identifier, sentence, label"),
    ],
)
def test_a_damaged_line_is_named_and_can_be_left_out(root: Path, content: bytes, message: str):
    path = root / "dev.json"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + content)
    (root / "test1.json").unlink()
    with pytest.raises(ValueError, match=message):
        load_nlvr2(root)
    splits = load_nlvr2(root, "skip")
    assert ([e.identifier for e in splits.test], len(splits.left_out)) == (["dev-1-0-0"], 1)


def test_one_missing_image_is_named_with_how_many_there_are(root: Path):
    missing = root / "test1" / "test1-2-0-img1.png"
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=rf"test1.json: test1-2-0-0: there is no image {missing} \(1 of 4 images"):
        load_nlvr2(root)
    splits = load_nlvr2(root, "skip")
    assert [example.identifier for example in splits.test] == ["test1-1-0-0"]
    (line,) = splits.left_out
    assert "test1.json: test1-2-0-0: there is no image " in line


def test_missing_images_are_found_by_listing_each_folder_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    load_nlvr2(root)
    folders = [str(root / "images" / "train" / str(directory)) for directory in DIRECTORIES] + [str(root / "test1")]
    assert sorted(listed) == sorted(folders)


def test_a_damaged_image_is_left_out(root: Path):
    path = root / "test1" / "test1-1-0-img0.png"
    path.write_bytes(path.read_bytes()[:30])
    assert len(load_nlvr2(root).test) == 2
    splits = load_nlvr2(root, "skip")
    assert [example.identifier for example in splits.test] == ["test1-2-0-0"]
    (line,) = splits.left_out
    assert "test1.json: test1-1-0-0: the image " in line


@pytest.mark.parametrize("identifier", ["dev-2-0", "dev-2-0-0-1", "dev-a-0-0", "dev--0-0", "dev-../x-0-0", "dev-²-0-0"])
def test_an_identifier_has_three_numbers(root: Path, identifier: str):
    change(root / "dev.json", 2, lambda e: e.update(identifier=identifier))
    (root / "test1.json").unlink()
    with pytest.raises(ValueError, match=r"dev.json: line 2 has the identifier '.*'; it must be dev-set-pair-sentence with"):
        load_nlvr2(root)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("split", ["train", "test1"])
def test_an_empty_split(root: Path, split: str, policy: str):
    (root / f"{split}.json").write_text("\n\n")
    with pytest.raises(ValueError, match=rf"the {split} split \(.*{split}.json\) holds no usable example"):
        load_nlvr2(root, policy)


def test_dev_is_a_way_out_of_an_unusable_test1(root: Path):
    (root / "test1.json").write_text("")
    with pytest.raises(ValueError, match=r"needs at least one; remove test1\.json, and dev\.json is used$"):
        load_nlvr2(root)
    (root / "dev.json").unlink()
    with pytest.raises(ValueError, match=r"needs at least one$"):
        load_nlvr2(root)


def test_one_directory_left_says_what_was_left_out(root: Path):
    for directory in DIRECTORIES[1:]:
        shutil.rmtree(root / "images" / "train" / str(directory))
    (root / "images" / "train" / str(DIRECTORIES[0]) / "train-0-0-img0.png").write_bytes(b"")
    message = r"all entries have the directory '0'.*; the first of 18 left out: .*train-0-0-0: the image"
    with pytest.raises(ValueError, match=message):
        load_nlvr2(root, "skip")


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (lambda text: f"[{text}]".encode(), "begins with '\\[': this is one JSON list; the format is one object a line"),
        (lambda text: text.encode("utf-16"), r"is not text in UTF-8, but in UTF-16 or still packed: save it in UTF-8"),
        (lambda text: text.encode("utf-16-be"), r"is not text in UTF-8, but in UTF-16 or still packed"),
    ],
)
def test_a_file_of_which_no_line_can_be_read(root: Path, rewrite: Callable[[str], bytes], message: str, policy: str):
    path = root / "train.json"
    path.write_bytes(rewrite(path.read_text()))
    with pytest.raises(ValueError, match=rf"train\.json {message}") as caught:
        load_nlvr2(root, policy)
    assert "on_bad_example" not in str(caught.value)


def test_a_split_without_its_images(root: Path):
    shutil.rmtree(root / "images")
    with pytest.raises(FileNotFoundError, match=r"there is no image .*nlvr2/images/train/0/train-0-0-img0.png \(24 of 24"):
        load_nlvr2(root)
    with pytest.raises(ValueError, match=r"the train split .* holds no usable example.*first of 24 left out: .*train.json"):
        load_nlvr2(root, "skip")


@pytest.mark.parametrize(
    ("names", "message"), [(("train",), "has no train.json"), (("test1", "dev"), "no test1.json or dev")]
)
def test_a_missing_file(root: Path, names: tuple[str, ...], message: str):
    for name in names:
        (root / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{message}.*, nor has a folder data in it; it holds .*images"):
        load_nlvr2(root)


def test_a_data_root_that_is_no_folder(root: Path):
    with pytest.raises(FileNotFoundError, match=r"data_root='.*train.json' is not a folder; name the one with NLVR2's JSON"):
        load_nlvr2(root / "train.json")


def test_an_unknown_policy_is_refused(root: Path):
    with pytest.raises(ValueError, match="on_bad_example='ignore'"):
        load_nlvr2(root, "ignore")
