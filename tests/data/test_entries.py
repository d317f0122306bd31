"""Entries: of JSON files, in a list or one per line, and of arrow tables; checks of their fields; bad ones."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from das_gym.data.entries import HINT, BadExamples, check_fields, read_entries
from das_gym.data.images import FolderListings, ImageFile, require_readable


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '\n [{"a": 1},\n{"a": 2}]\n', '\ufeff[{"a": 1}, {"a": 2}]'])
def test_read_entries_of_a_list(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert list(read_entries(path, BadExamples())) == [(f"{path}: [0]", {"a": 1}), (f"{path}: [1]", {"a": 2})]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}', '\ufeff{"a": 1}\r\n\r\n{"a": 2}\r\n'])
def test_read_entries_of_lines(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode())
    entries = list(read_entries(path, BadExamples()))
    assert entries[0] == (f"{path}: line 1", {"a": 1})
    assert [entry for _, entry in entries] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("entry", [3, {}, {"a": "1"}, {"a": True}, {"a": None}])
def test_check_fields_names_the_field(entry):
    check_fields({"a": 1, "b": 2}, {"a": int}, "x")
    with pytest.raises(ValueError, match=r"^x.* a$|^x.*`a`"):
        check_fields(entry, {"a": int}, "x")


def test_folder_listings_find_the_first_existing_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    listings = FolderListings()
    paths = [tmp_path / folder / "x.png" for folder in ("missing", "a", "b")]
    assert listings.first_existing(paths) == paths[1]
    paths[2].touch()
    assert listings.first_existing(paths) == paths[1]  # each folder is listed once
    assert FolderListings().first_existing(paths) == paths[2]
    assert FolderListings().first_existing(paths[:1]) == paths[0]


def write_images(folder: Path, count: int) -> list[ImageFile]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.linear_gradient("L").rotate(number).save(folder / f"{number}.jpg")
    return [ImageFile(folder / f"{number}.jpg") for number in range(count)]


def test_bad_examples_raise_with_a_hint():
    error = FileNotFoundError("a.json: images[3] does not exist")
    error.__cause__ = OSError("disk")
    with pytest.raises(FileNotFoundError, match=rf"^a\.json: images\[3\] does not exist\. {re.escape(HINT)}") as caught:
        BadExamples().report(error)
    assert caught.value.__cause__ is error.__cause__


def test_bad_examples_skip_counts_and_keeps_lines():
    bad = BadExamples("skip")
    entries = [("line 1", "3"), ("line 2", "x"), ("line 3", ""), ("line 4", "4")]
    assert bad.parse(entries, lambda entry, where: int(entry) if entry else None) == [3, 4]
    assert "1 entries were skipped" in bad.last_skipped
    splits = bad.splits([], [], [], str)
    assert splits.left_out == tuple(bad.lines)


def test_bad_examples_reject_an_unknown_policy():
    with pytest.raises(ValueError, match="`on_bad_example`: got 'ignore'"):
        BadExamples("ignore")


def test_skip_drops_every_example_of_a_broken_image(tmp_path):
    images = write_images(tmp_path / "images", 4)
    images[1].path.write_bytes(images[1].path.read_bytes()[:-100])
    images[2].path.unlink()
    bad = BadExamples("skip")
    pairs = {name: SimpleNamespace(key=name, images=[images[int(n)] for n in name]) for name in ("01", "03", "23", "11")}
    assert bad.drop_broken(list(pairs.values()), "pairs.json") == [pairs["03"]]
    assert [line.partition(": the image")[0] for line in bad.lines] == [f"pairs.json: {name}" for name in ("01", "23", "11")]
    assert not any("on_bad_example" in line for line in bad.lines)
    with pytest.raises(ValueError, match=r"x\.json holds no usable example.*3 entries were skipped"):
        bad.require([], "x.json")


def test_require_readable_raises_the_first_error(tmp_path):
    images = write_images(tmp_path / "images", 3)
    require_readable(images)
    images[1].path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"1\.jpg cannot be read"):
        require_readable(images)
