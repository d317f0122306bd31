"""Writes Shapes-VQA, in VQAv2's format, to a folder of one's own: a `data_root`.

python -m das_gym.shapes /tmp/shapes                                        as it is bundled: annotators agree
python -m das_gym.shapes /tmp/shapes --disagreement 0.25 --train-scenes 300 --val-scenes 200
"""

from __future__ import annotations

import argparse
from pathlib import Path

from das_gym.shapes.vqa import TRAIN_SCENES, VAL_SCENES, write_shapes


def main(arguments: list[str] | None = None) -> None:
    """Write them, and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m das_gym.shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new or an empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--train-scenes", type=int, default=TRAIN_SCENES, help="images of train2014")
    parser.add_argument("--val-scenes", type=int, default=VAL_SCENES, help="images of val2014")
    parser.add_argument("--disagreement", type=float, default=0.0, help="chance of each annotator to be wrong, 0..1")
    given = vars(parser.parse_args(arguments))
    try:
        print(f"data_root={write_shapes(**given)}")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
