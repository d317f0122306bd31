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
        source: A METER or ViLT checkpoint: a .ckpt or .safetensors file, or a folder, transformers' ViLT's or ours.
            Nothing in the file is executed.
        out: A folder, or a file that ends in .safetensors. Adapters that the source lacks are not written.
        image_size: Side of the images to come, pixels; None = as in the file.
        num_heads, text_heads, vision_heads: Attention heads, where a small model's shapes do not tell them.
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
