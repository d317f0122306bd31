"""Bad examples: raised or skipped, and images that are decoded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gym.data.bad_examples import HINT, BadExamples
from das_gym.data.cache import CACHE_VARIABLE
from das_gym.data.image_checks import READABLE, require_readable
from das_gym.data.images import ImageFile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class Counted:
    """An image that counts how often it is opened."""

    source: ImageFile
    opened: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.source.key

    def stamp(self) -> str:
        return self.source.stamp()

    def open(self) -> Image.Image:
        self.opened.append(self.key)
        return self.source.open()


def write_images(folder: Path, count: int) -> list[Counted]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.linear_gradient("L").rotate(number).save(folder / f"{number}.jpg")
    return [Counted(ImageFile(folder / f"{number}.jpg")) for number in range(count)]


def opened(images: list[Counted]) -> list[int]:
    return [len(image.opened) for image in images]


def test_bad_examples_raise_with_a_hint_once():
    error = FileNotFoundError("a.json: images[3] does not exist")
    error.__cause__ = OSError("disk")
    with pytest.raises(FileNotFoundError, match=rf"^a\.json: images\[3\] does not exist\. {HINT}") as caught:
        BadExamples().report(error)
    assert caught.value.__cause__ is error.__cause__
    with pytest.raises(FileNotFoundError) as again:
        BadExamples().report(caught.value)
    assert str(again.value) == str(caught.value)


def test_bad_examples_skip_counts_and_keeps_lines():
    bad = BadExamples("skip")
    entries = [("line 1", "3"), ("line 2", "x"), ("line 3", ""), ("line 4", "4")]
    assert bad.parse(entries, lambda entry, where: int(entry) if entry else None, size=lambda _: 5) == [3, 4]
    assert (len(bad.lines), bad.count) == (1, 5)
    assert "5 examples were skipped" in bad.last_skipped
    splits = bad.splits([1], [2], [3])
    assert (splits.left_out, splits.left_out_count) == (tuple(bad.lines), 5)


def test_bad_examples_reject_an_unknown_policy():
    with pytest.raises(ValueError, match="`on_bad_example`: got 'ignore'"):
        BadExamples("ignore")


def test_skip_drops_every_example_of_a_broken_image(tmp_path: Path):
    images = write_images(tmp_path / "images", 4)
    images[1].source.path.write_bytes(images[1].source.path.read_bytes()[:-100])
    images[2].source.path.unlink()
    bad = BadExamples("skip")
    examples = [(0, 1), (0, 3), (2, 3), (1, 1)]
    assert bad.drop_broken(examples, "pairs.json", lambda pair: [images[n] for n in pair], str) == [(0, 3)]
    assert [line.partition(": the image")[0] for line in bad.lines] == [f"pairs.json: {examples[n]}" for n in (0, 2, 3)]
    assert not any("on_bad_example" in line for line in bad.lines)
    with pytest.raises(ValueError, match=r"x\.json holds no usable example.*3 examples were skipped"):
        bad.require([], "x.json")


def test_readable_image_is_decoded_once_until_it_changes(tmp_path: Path, cache: Path):
    images = write_images(tmp_path / "images", 3)
    images[2].source.path.write_bytes(b"damaged")
    for repeated in (images, [*images, *images]):
        assert list(BadExamples("skip").broken_images(repeated)) == [images[2].key]
    assert opened(images) == [1, 1, 2]
    for number in (0, 2):
        Image.new("RGB", (5, 5)).save(images[number].source.path)
    require_readable(images)
    assert opened(images) == [2, 1, 3]
    (cache / READABLE).write_bytes(b"damaged")
    require_readable(images)
    assert opened(images) == [3, 2, 4]
    np.save(cache / READABLE, np.zeros((2, 2)))
    require_readable(images)
    assert len(np.load(cache / READABLE)) == 3


def test_images_decoded_before_an_interruption_are_remembered(tmp_path: Path):
    images = write_images(tmp_path / "images", 3)

    class Interrupting(Counted):
        def open(self) -> Image.Image:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        require_readable([images[0], images[1], Interrupting(images[2].source)])
    require_readable(images)
    assert opened(images) == [1, 1, 1]
