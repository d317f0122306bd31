"""Scenes of coloured shapes, from which the bundled data sets draw their images and sentences."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from das_gym.commands.progress import progress
from das_gym.files import replacing

T = TypeVar("T")

IMAGE_SIZE = 96
"""Side of a scene, in pixels."""

COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 205, 30),
    "purple": (150, 50, 190),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")

MIN_OBJECTS, MAX_OBJECTS = 2, 5
MIN_RADIUS, MAX_RADIUS = 9.0, 12.0
MIN_GAP = 25.0
"""Least distance between the centres of two objects, in pixels: at most corners ever touch."""

JPEG_QUALITY = 95


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. `x` grows to the right and `y` downwards, in pixels from the top left."""

    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """Its name in questions, such as `red circle`."""
        return f"{self.color} {self.shape}"

    def distance(self, other: SceneObject) -> float:
        """Return the distance between the two centres, in pixels."""
        return math.hypot(self.x - other.x, self.y - other.y)


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order on a background of one gray level (0..255)."""

    objects: tuple[SceneObject, ...]
    background: int

    def matching(self, color: str | None = None, shape: str | None = None) -> tuple[SceneObject, ...]:
        """Return the objects of a colour and shape; None matches any."""
        return tuple(o for o in self.objects if color in (None, o.color) and shape in (None, o.shape))

    def unique(self) -> tuple[SceneObject, ...]:
        """Return the objects whose name no other object has."""
        names = [o.name for o in self.objects]
        return tuple(o for o in self.objects if names.count(o.name) == 1)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


def plural(shape: str) -> str:
    """Return the plural, such as `circles` or `crosses`."""
    return shape + ("es" if shape.endswith("s") else "s")


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of 2 to 5 objects that do not overlap.

    Half of the objects after the first repeat the colour or the shape of an earlier one, so that
    neither alone identifies an object.
    """
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    objects: list[SceneObject] = []
    while len(objects) < count:
        objects.append(sample_object(rng, objects))
    return Scene(tuple(objects), background=sample_background(rng))


def sample_object(
    rng: np.random.Generator, others: list[SceneObject], color: str | None = None, shape: str | None = None
) -> SceneObject:
    """Draw an object that overlaps no other; where neither is given, half repeat the colour or the shape of another."""
    colors = list(COLORS)
    shapes = list(SHAPES)
    # The order of draws decides the bundled data: tests/shapes/test_scenes.py knows their digests.
    free = color is None and shape is None
    color = color or colors[rng.integers(len(colors))]
    shape = shape or shapes[rng.integers(len(shapes))]
    # Otherwise most questions could be answered from a colour or a shape alone.
    if free and others and rng.random() < 0.5:
        model = others[rng.integers(len(others))]
        color, shape = (model.color, shape) if rng.random() < 0.5 else (color, model.shape)
    radius = float(rng.uniform(MIN_RADIUS, MAX_RADIUS))
    x, y = _free_place(rng, others)
    return SceneObject(color, shape, x, y, radius)


def sample_background(rng: np.random.Generator) -> int:
    """Draw the gray level of a background: light, so that every colour stands out."""
    return int(rng.integers(190, 250))


def _free_place(rng: np.random.Generator, objects: list[SceneObject]) -> tuple[float, float]:
    """Draw a centre at least MIN_GAP from every object; five practically always fit in 96 x 96 pixels."""
    margin = MAX_RADIUS + 1
    while True:
        x, y = rng.uniform(margin, IMAGE_SIZE - margin, size=2)
        if all(math.hypot(x - o.x, y - o.y) >= MIN_GAP for o in objects):
            return float(x), float(y)


def _outline(item: SceneObject) -> list[tuple[float, float]]:
    x, y, r = item.x, item.y, item.radius
    if item.shape == "square":
        s = 0.85 * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if item.shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    if item.shape == "star":
        angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
        radii = [1.15 * r if k % 2 == 0 else 0.5 * r for k in range(10)]
        return [(x + q * math.cos(a), y + q * math.sin(a)) for a, q in zip(angles, radii, strict=True)]
    a = 0.35 * r
    b = r
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return [(x + dx, y + dy) for dx, dy in corners]


def paint(draw: ImageDraw.ImageDraw, item: SceneObject, fill: tuple[int, ...] | int) -> None:
    """Draw an object."""
    if item.shape == "circle":
        r = item.radius
        draw.ellipse((item.x - r, item.y - r, item.x + r, item.y + r), fill=fill)
    else:
        draw.polygon(_outline(item), fill=fill)


def render(scene: Scene) -> Image.Image:
    """Return the image of a scene: RGB, 96 x 96."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (scene.background,) * 3)
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        paint(draw, item, COLORS[item.color])
    return image


def encode_jpeg(image: Image.Image) -> bytes:
    """Return an image as the content of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


class SeenImages:
    """Recognizes images that did not occur before by their bytes."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, content: bytes) -> bool:
        """Return True if a file with these bytes is added for the first time."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        new = digest not in self._seen
        self._seen.add(digest)
        return new


def check_counts(least: int, **counts: int) -> None:
    """Raise ValueError for a number below `least`."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"wrong `{name}`: got {count}, expected {least} or more")


@contextmanager
def writing_data_set(folder: Path, title: str, total: int, unit: str = "scene") -> Iterator[tuple[Path, tqdm]]:
    """Yield a folder that becomes the new or empty `folder` (else FileExistsError) after the block, and a progress bar."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists, expected a new or empty folder for {title}")
    with replacing(folder, is_folder=True) as partial, progress(total, f"drawing {title}", unit) as bar:
        yield partial, bar
