"""Any checkpoint as safetensors.

python -m adapt convert with source=meter_clip16_288_roberta_pretrain.ckpt out=meter
python -m adapt convert with source=small.ckpt out=small.safetensors num_heads=4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.models.checkpoints import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class ConvertSettings(CommandSettings):
    """The settings of `python -m adapt convert`.

    Attributes:
        source: METER or ViLT checkpoint: a .ckpt or .safetensors file, or a folder. No code in the file is executed.
        out: New folder, or a file that ends in .safetensors. Adapters that the source lacks are not written.
        image_size: Side of the input images in pixels. None keeps the size of the source.
        num_heads: Number of attention heads, if the shapes of a small model do not tell it.
        text_heads: Number of attention heads of the text encoder, if the shapes of a small model do not tell it.
        vision_heads: Number of attention heads of the image encoder, if the shapes of a small model do not tell it.
    """

    source: str
    out: str
    image_size: int | None = None
    num_heads: int | None = None
    text_heads: int | None = None
    vision_heads: int | None = None


def convert(settings: ConvertSettings) -> str:
    """Write the checkpoint; returns what became of every name."""
    own = ("image_size", "num_heads", "text_heads", "vision_heads")
    sizes = {name: value for name in own if (value := getattr(settings, name)) is not None}
    loaded = load_checkpoint(settings.source, **sizes)
    save_checkpoint(settings.out, loaded.vlp, loaded.heads, search=loaded.search, leave_out=loaded.report.missing)
    return f"{loaded.report}\nwritten to {Path(settings.out).absolute()}"


def main(words: Sequence[str]) -> None:
    """Convert as the words behind `python -m adapt convert` say."""
    settings = parse_or_help(ConvertSettings, words, "adapt convert")
    if settings is not None:
        print(convert(settings))
