"""Bad examples: raised or left out, and images that are decoded once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gym.data.cache import CACHE_VARIABLE
from das_gym.data.checks import BadExamples, check_characters, check_text, require_readable
from das_gym.data.images import ImageFile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_images(folder: Path, count: int) -> list[ImageFile]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.linear_gradient("L").rotate(number).save(folder / f"{number}.jpg")
    return [ImageFile(folder / f"{number}.jpg") for number in range(count)]


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


def test_raise_adds_the_way_out_once_and_keeps_kind_and_cause():
    cause = OSError("disk")
    error = FileNotFoundError("a.json: images[3] is gone")
    error.__cause__ = cause
    with pytest.raises(
        FileNotFoundError, match=r'^a\.json: images\[3\] is gone; or pass on_bad_example="skip" to'
    ) as caught:
        BadExamples().report(error)
    assert caught.value.__cause__ is cause
    with pytest.raises(ValueError, match=r'^x: pass on_bad_example="skip" to leave out what is bad$'):
        BadExamples("raise").report(ValueError('x: pass on_bad_example="skip" to leave out what is bad'))


def test_skip_keeps_lines_in_order():
    bad = BadExamples("skip")
    bad.report(ValueError("first"), examples=5)
    assert bad.first_left_out == "; the first of 5 left out: first"
    bad.new_file()
    assert bad.first_left_out == ""
    bad.add_lines(["second", "third"], 4)
    bad.report(ValueError("fourth"), examples=0)
    assert bad.lines == ("first", "second", "third", "fourth")
    assert bad.count == 9
    assert bad.first_left_out == "; the first of 4 left out: second"


@pytest.mark.parametrize("policy", ["ignore", "", "Raise"])
def test_another_policy_is_refused(policy: str):
    with pytest.raises(ValueError, match=rf"on_bad_example='{policy}' is unknown; choose one of raise, skip"):
        BadExamples(policy)


def test_raise_looks_for_files_and_does_not_open_them(tmp_path: Path):
    images = write_images(tmp_path / "images", 4)
    images[1].path.write_bytes(b"damaged")
    bad, counted = BadExamples(), [Counted(image) for image in images]
    assert bad.drop_broken(counted, lambda item: (item,), lambda item: item.key) == counted
    assert not any(item.opened for item in counted)
    images[2].path.unlink()
    images.append(ImageFile(tmp_path / "nowhere" / "9.jpg"))
    message = r"^entry .*2\.jpg: there is no image .*2\.jpg \(2 of 5 images are missing\); put them there; or pass"
    with pytest.raises(FileNotFoundError, match=message):
        bad.drop_broken([*images, images[2]], lambda image: (image,), lambda image: f"entry {image.path}")


def test_skip_decodes_and_drops_every_example_of_a_broken_image(tmp_path: Path):
    images = write_images(tmp_path / "images", 4)
    images[1].path.write_bytes(images[1].path.read_bytes()[:-100])
    images[2].path.unlink()
    bad = BadExamples("skip")
    examples = [(0, 1), (0, 3), (2, 3), (1, 1)]
    kept = bad.drop_broken(examples, lambda pair: [images[n] for n in pair], lambda pair: f"pairs.json: {pair}")
    assert kept == [(0, 3)]
    damaged, missing, both = bad.lines
    assert re.match(r"pairs\.json: \(0, 1\): the image .*1\.jpg cannot be read \(OSError: image file is truncated", damaged)
    assert re.match(r"pairs\.json: \(2, 3\): there is no image .*2\.jpg", missing)
    assert re.match(r"pairs\.json: \(1, 1\): the image .*1\.jpg cannot be read", both)
    assert not any("on_bad_example" in line for line in bad.lines)


def test_a_readable_image_is_decoded_once_until_it_changes(tmp_path: Path, cache: Path):
    images = [Counted(image) for image in write_images(tmp_path / "images", 3)]
    images[2].source.path.write_bytes(b"damaged")
    assert list(BadExamples("skip").broken_images(images)) == [images[2].key]
    assert list(BadExamples("skip").broken_images([*images, *images])) == [images[2].key]
    assert [len(image.opened) for image in images] == [1, 1, 2]
    Image.new("RGB", (5, 5)).save(images[0].source.path)
    Image.new("RGB", (5, 5)).save(images[2].source.path, format="JPEG")
    assert not BadExamples("skip").broken_images(images)
    assert [len(image.opened) for image in images] == [2, 1, 3]
    (verdicts,) = cache.glob("*.npy")
    verdicts.write_bytes(b"damaged")
    assert not BadExamples("skip").broken_images(images)
    assert [len(image.opened) for image in images] == [3, 2, 4]
    assert len(np.load(verdicts)) == 3
    for odd in (np.array(["x"]), np.zeros((2, 2)), np.array(1)):
        np.save(verdicts, odd)
        assert not BadExamples("skip").broken_images(images)
        assert len(np.load(verdicts)) == 3


def test_images_are_required_to_be_readable_and_decoded_once(tmp_path: Path):
    images = [Counted(image) for image in write_images(tmp_path / "images", 4)]
    require_readable([*images, *images])
    require_readable(images)
    assert [len(image.opened) for image in images] == [1, 1, 1, 1]
    images[2].source.path.write_bytes(b"damaged")
    message = r"the image .*2\.jpg cannot be read .*a stopped run goes on with resume=<id>, or .*on_bad_example=skip$"
    with pytest.raises(ValueError, match=message):
        require_readable(images)
    images[2].source.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*2\.jpg; put the file there"):
        require_readable(images)
    assert [len(image.opened) for image in images] == [1, 1, 3, 1]


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_empty_texts_are_refused(text: str | None):
    with pytest.raises(ValueError, match=r"^line 3: sentence is empty; write the text there$"):
        check_text(text, "line 3: sentence")


def test_half_a_character_is_refused_and_a_whole_one_is_not():
    check_text("two owls 🦉🦉", "line 3")
    for check in (check_text, check_characters):
        with pytest.raises(
            ValueError, match=r"^line 3 is 'a \\ud83d b', which is no valid text \(surrogates not allowed\)$"
        ):
            check("a \ud83d b", "line 3")
    check_characters("", "line 3")


def test_folders_and_dangling_links_are_no_images(tmp_path: Path):
    images = write_images(tmp_path / "images", 5)
    for image in images[1:]:
        image.path.unlink()
    images[1].path.mkdir()
    images[2].path.symlink_to(tmp_path / "nowhere")
    images[3].path.symlink_to(images[0].path)
    images[4].path.symlink_to(images[4].path)
    assert list(BadExamples().broken_images(images)) == [images[n].key for n in (1, 2, 4)]


def test_what_was_decoded_before_an_interruption_is_remembered(tmp_path: Path):
    images = [Counted(image) for image in write_images(tmp_path / "images", 3)]

    class Interrupting(Counted):
        def open(self) -> Image.Image:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BadExamples("skip").broken_images([images[0], images[1], Interrupting(images[2].source)])
    BadExamples("skip").broken_images(images)
    assert [len(image.opened) for image in images] == [1, 1, 1]


def test_a_cache_folder_that_cannot_be_made_costs_only_time(tmp_path: Path, cache: Path):
    images = [Counted(image) for image in write_images(tmp_path / "images", 2)]
    cache.mkdir()
    (cache / "readable-images-2.npy").mkdir()
    for _ in range(2):
        assert not BadExamples("skip").broken_images(images)
    assert [len(image.opened) for image in images] == [2, 2]


def test_nothing_left_is_refused_with_the_first_line():
    bad = BadExamples("skip")
    with pytest.raises(ValueError, match=r"^dev\.json holds no usable example, and needs at least one$"):
        bad.require([], "dev.json")
    bad.report(ValueError("dev.json: line 1 is bad"))
    with pytest.raises(ValueError, match=r"at least one; the first of 1 left out: dev\.json: line 1 is bad$"):
        bad.require([], "dev.json")
    bad.require(["one"], "dev.json")
