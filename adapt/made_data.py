"""The generated questions about pictures in VQAv2's format, in a folder of one's own: a `data_root`.

python -m adapt shapes with out=DIR                           as they are bundled: annotators agree
python -m adapt shapes with out=DIR disagreement=0.25 train_scenes=300 val_scenes=200
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.shapes.vqa import TRAIN_SCENES, VAL_SCENES, write_shapes


@dataclass(frozen=True)
class ShapesSettings(CommandSettings):
    """The settings of `python -m adapt shapes`.

    Attributes:
        out: New or empty folder to write to.
        seed: Random seed.
        train_scenes: Number of images of train2014.
        val_scenes: Number of images of val2014.
        disagreement: Probability that an annotator, one of ten, gives a wrong answer, 0..1.
    """

    out: str
    seed: int = 0
    train_scenes: int = TRAIN_SCENES
    val_scenes: int = VAL_SCENES
    disagreement: float = 0.0


def main(words: Sequence[str]) -> None:
    """Write them, and say where."""
    settings = parse_or_help(ShapesSettings, words, "adapt shapes")
    if settings is not None:
        own = {name: value for name, value in vars(settings).items() if name not in ("out", "use")}
        print(f"data_root={write_shapes(settings.out, **own)}")
