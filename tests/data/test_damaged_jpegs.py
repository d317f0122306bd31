"""JPEGs that are damaged in their middle, and sound ones of every kind that is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from das_gym.data.checks import BadExamples
from das_gym.data.decoding import load_image
from das_gym.data.images import ImageFile

SIZE = (160, 120)


def scene(seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image | None = None, **settings) -> bytes:
    file = io.BytesIO()
    (scene() if image is None else image).save(file, settings.pop("format", "JPEG"), **settings)
    return file.getvalue()


def overwritten(content: bytes, rng: np.random.Generator, count: int) -> bytes:
    """So many random bytes somewhere in the compressed data."""
    start = content.index(b"\xff\xda") + 14
    place = int(rng.integers(start, len(content) - 2 - count))
    return content[:place] + rng.bytes(count) + content[place + count :]


def test_most_damage_is_noticed(tmp_path: Path):
    """Of 100 pictures with 64 bytes overwritten nine in ten; PIL alone refuses a quarter."""
    rng, refused, alone = np.random.default_rng(0), 0, 0
    for number in range(100):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(overwritten(jpeg(scene(number), quality=90), rng, 64))
        try:
            load_image(path)
        except ValueError:
            refused += 1
        try:
            Image.open(path).load()
        except OSError:
            alone += 1
    assert refused >= 85
    assert alone < 40


def test_a_damaged_picture_is_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAS_GYM_CACHE", str(tmp_path / "cache"))
    content = jpeg()
    middle = content.index(b"\xff\xda") + 400
    (tmp_path / "bad.jpg").write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
    (tmp_path / "good.jpg").write_bytes(content)
    Image.open(tmp_path / "bad.jpg").load()  # PIL says nothing
    bad = BadExamples("skip")
    images = [ImageFile(tmp_path / name) for name in ("bad.jpg", "good.jpg")]
    assert bad.drop_broken(images, lambda image: [image], lambda image: image.path.name) == images[1:]
    assert bad.count == 1
    assert "bad.jpg cannot be read (OSError: Corrupt JPEG data: " in bad.lines[0]


EXIF = Image.Exif()
EXIF[0x0112] = 6

SOUND = {
    "progressive": lambda: jpeg(progressive=True),
    "gray": lambda: jpeg(scene().convert("L"), progressive=True),
    "cmyk": lambda: jpeg(scene().convert("CMYK")),
    "rgb": lambda: jpeg(keep_rgb=True),
    "exif": lambda: jpeg(exif=EXIF.tobytes()),
    "profile": lambda: jpeg(icc_profile=bytes(range(256)) * 600),
    "half a profile": lambda: jpeg(icc_profile=bytes(300)).replace(b"ICC_PROFILE\x00\x01\x01", b"ICC_PROFILE\x00\x02\x02"),
    "comment": lambda: jpeg(comment=b"c" * 3000),
    "trailing bytes": lambda: jpeg() + b"\xffrubbish" * 100,
    "two pictures": lambda: jpeg(format="MPO", save_all=True, append_images=[scene(1)]),
    "restart markers": lambda: jpeg(restart_marker_blocks=3),
    "restart markers, progressive": lambda: jpeg(restart_marker_rows=1, progressive=True),
    "4:4:4": lambda: jpeg(subsampling=0),
    "4:1:1": lambda: simplejpeg.encode_jpeg(np.array(scene()), colorsubsampling="411"),
    "4:4:0": lambda: simplejpeg.encode_jpeg(np.array(scene()), colorsubsampling="440"),
    "a pixel": lambda: jpeg(scene().resize((1, 1))),
    "a line": lambda: jpeg(scene().resize((2000, 1))),
    "coarse": lambda: jpeg(quality=1),
    "fill bytes": lambda: jpeg()[:-2] + b"\xff\xff\xff\xff\xd9",
    "padding": lambda: jpeg()[:-2] + b"\x00\x00\x00\xff\xd9",
    "other words": lambda: jpeg().replace(b"JFIF\x00\x01\x01", b"JFIF\x00\x09\x01"),
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_pictures_of_odd_kinds_are_read(tmp_path: Path, kind: str):
    (tmp_path / "odd.jpg").write_bytes(SOUND[kind]())
    assert load_image(tmp_path / "odd.jpg").mode == "RGB"
