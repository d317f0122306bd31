"""What examples share, parts chosen by hashes, and images with the same bytes under different names."""

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das_gym.data.entries import BadExamples
from das_gym.data.images import ImageFile, NoiseImage
from das_gym.data.rows import CellImage
from das_gym.data.splits import TAIL_BYTES, content_keys, hash_order, linked_groups
from das_gym.files import CACHE_VARIABLE
from tests.arrow_tables import write_table

KEYS = st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=3), max_size=20)


def test_hash_order_is_stable():
    assert hash_order(["a", "b", "c", "d", "a"]) == hash_order(["d", "c", "b", "a"])
    assert hash_order(map(str, range(8))) == ["6", "2", "4", "0", "5", "3", "7", "1"]


@given(KEYS)
def test_groups_share_nothing_and_cannot_be_divided(keys):
    groups = linked_groups(keys)
    for first, one in enumerate(keys):
        for second, other in enumerate(keys):
            if set(one) & set(other):
                assert groups[first] == groups[second]
    for group in set(groups):
        members = [set(own) for own, of in zip(keys, groups, strict=True) if of == group]
        reached = members[0]
        for _ in members:
            reached = reached.union(*(own for own in members if own & reached))
        assert len(members) == 1 or all(own & reached for own in members)


class Asked(NamedTuple):
    key: str
    images: tuple[ImageFile, ...]
    question: str


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def write(path: Path, start: bytes, end: bytes = b"") -> ImageFile:
    """A file of three tails, whose first and last bytes are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(start.ljust(3 * TAIL_BYTES - len(end), b"-") + end)
    return ImageFile(path)


def groups(*images: ImageFile | CellImage | NoiseImage) -> list[int]:
    """The number of the first image with the same content, for each image."""
    keys = content_keys(images)
    contents = [keys[image.key] for image in images]
    return [contents.index(content) for content in contents]


def test_equal_bytes_have_one_key_whatever_the_names(tmp_path):
    one = write(tmp_path / "a/1.png", b"same")
    copy = write(tmp_path / "b/2.png", b"same")
    other_start = write(tmp_path / "b/3.png", b"else")
    other_end = write(tmp_path / "b/4.png", b"same", end=b"!")
    missing = ImageFile(tmp_path / "b/5.png")
    assert groups(one, copy, other_start, other_end, missing, NoiseImage(1), NoiseImage(2)) == [0, 0, 2, 3, 4, 5, 6]
    assert content_keys([one, missing]) == {one.key: one.key, missing.key: missing.key}


def test_cells_of_tables_are_compared(tmp_path):
    path = write_table(tmp_path / "x.arrow", [{"image": content} for content in (b"one", b"two", b"one", b"three")])
    assert groups(*(CellImage(path, row) for row in range(4))) == [0, 1, 0, 3]


def test_unchanged_images_are_not_read_again(tmp_path):
    images = [write(tmp_path / f"{number}.png", b"same") for number in range(2)]
    keys = content_keys(images)
    for image in images:
        image.path.chmod(0)
    assert content_keys(images) == keys
    (cached,) = (tmp_path / "cache" / "images").iterdir()
    cached.write_bytes(cached.read_bytes()[:-9])
    for image in images:
        image.path.chmod(0o600)
    assert content_keys(images) == keys
    write(images[1].path, b"else").path.touch()
    assert groups(*images) == [0, 1]


def test_splits_warn_of_shared_images_and_repeated_questions(tmp_path):
    train, copy, other = (write(tmp_path / f"{name}.png", start) for name, start in (("1", b"a"), ("2", b"a"), ("3", b"b")))
    examples = [
        Asked("k1", (train,), "?"),
        Asked("k2", (copy,), "?"),
        Asked("k3", (other,), "?"),
        Asked("k4", (other,), "?"),
    ]
    with pytest.warns(UserWarning, match="1 images of the train split are in the test split"):
        BadExamples().splits(examples[:1], examples[2:3], examples[1:2], lambda e: e.question)
    with pytest.warns(UserWarning, match="1 of 2 test examples repeat .* k4, which repeats k3"):
        BadExamples().splits(examples[:1], [], examples[2:], lambda e: e.question)
