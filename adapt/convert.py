"""`python -m das_gym.adapt.convert convert IN OUT`: any checkpoint to safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from das_gym.models.checkpoints import families, load_checkpoint, save_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m das_gym.adapt.convert", description="Checkpoints of vision-language models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint as safetensors",
        description="Read a checkpoint (an official .ckpt, a transformers folder, or ours) and write it as safetensors. "
        "Nothing in the file is executed. Adapters that it lacks are not written.",
    )
    convert.add_argument("source", metavar="IN", help="a .ckpt or .safetensors file, or a folder")
    convert.add_argument("target", metavar="OUT", help="a folder, or a file that ends in .safetensors")
    convert.add_argument("--image-size", type=int, help="side of the images to come, pixels; default: as in the file")
    for name in _head_fields():
        option = f"--{name.replace('_', '-')}"
        convert.add_argument(option, type=int, help="attention heads, where a small model's shapes do not tell them")
    return parser


def _head_fields() -> list[str]:
    """Numbers of attention heads, which the shapes of small models do not tell."""
    return list(dict.fromkeys(name for family in families().values() for name in family.head_fields))


def convert(source: str, target: str, settings: Mapping[str, Any]) -> str:
    """Write the checkpoint `source` to `target`; returns what became of every name.

    Args:
        source: What to read.
        target: A folder, or a file that ends in `.safetensors`.
        settings: Arguments for `load_checkpoint`.
    """
    loaded = load_checkpoint(source, **settings)
    save_checkpoint(target, loaded.vlp, loaded.heads, search=loaded.search, leave_out=loaded.report.missing)
    return f"{loaded.report}\nwritten to {Path(target).absolute()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in ("image_size", *_head_fields())}
    try:
        print(convert(options.source, options.target, {name: value for name, value in given.items() if value is not None}))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
