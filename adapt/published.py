"""The cells of the paper's tables: what is published, what comes out here without its checkpoints, and how to run each.

METER and ViLT as METER-base and ViLT-B/32 are counted without content, so that parameters and MACs need no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from das_gym.adapt.methods.base import make_method

from das_gym.commandline import format_command
from das_gym.models.adapters import parallel_adapters
from das_gym.models.base import VLP
from das_gym.models.encoding import meta_batch
from das_gym.models.macs import without_content
from das_gym.models.meter.model import METER
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.costs import count_costs
from das_gym.registration import named_environments

if TYPE_CHECKING:
    from das_gym.console import Console

TASKS = {
    "METER": (("vqa", "VQA test-dev"), ("nlvr2", "NLVR2 test-P"), ("retrieval", "Flickr30k IR / TR R@1")),
    "ViLT": (("vqa", "VQA test-dev"), ("nlvr2", "NLVR2 test-P"), ("retrieval", "Flickr30k IR / TR R@1")),
}
"""Columns of the tables."""

UNPUBLISHED: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "METER": (
        ("snli_ve", "SNLI-VE test", ()),
        (
            "coco",
            "COCO IR / TR R@1",
            ("das.learning_rate=5e-6", "das.train_on_reward=False", "das.reward_split=train"),
        ),
    ),
    "ViLT": (("coco", "COCO IR / TR R@1", ("das.train_on_reward=False",)),),
}
"""What the code has configs of and no table has scores of: named config, title, and where it differs from Flickr30k's.

Source: the code's configs and data sets. Both train on COCO's train and restval, METER scores masks on restval, ViLT on val.
"""

NEEDED = {
    "METER": "checkpoint meter_clip16_288_roberta_pretrain.ckpt (METER's authors) and RoBERTa-base's tokenizer",
    "ViLT": "checkpoint vilt_200k_mlm_itm.ckpt (ViLT's authors; or dandelin/vilt-b32-mlm) and BERT-base-uncased's tokenizer",
    "vqa": "VQAv2's questions, annotations and COCO images; DAS's test-dev answers go to its server, from `adapt predict`; "
    "`adapt compare` keeps no model, and scores on val2014",
    "nlvr2": "NLVR2's JSON files and images",
    "retrieval": "Karpathy's dataset_flickr30k.json and the Flickr30k images",
    "snli_ve": "SNLI-VE's snli_ve_{train,dev,test}.jsonl and the Flickr30k images",
    "coco": "Karpathy's dataset_coco.json and COCO's train2014 and val2014 images",
}
"""What has to be there to run a cell, and cannot be shipped."""

LACKING = (
    "scores of SNLI-VE and COCO to stand beside: their rows are not among the tables that are quoted here",
    "deep prompts, learnt tokens of every layer: `prompt` has those before the first",
)
"""What the published tables have, and what of them is not here."""


@dataclass(frozen=True)
class Published:
    """A row of the tables of the paper's laboratory.

    Attributes:
        model: `METER` or `ViLT`.
        title: As published.
        method: A key of `METHODS`; None where there is none here.
        parameters: Updated parameters, millions, without heads; None is not told.
        macs: More MACs than the pre-trained model, thousand millions; None is not told.
        scores: By column of `TASKS`.
    """

    model: str
    title: str
    method: str | None
    parameters: float | None
    macs: float | None
    scores: tuple[str, ...]


PUBLISHED = (
    Published("METER", "full tuning", "full", 323.31, 0.0, ("77.43", "83.05", "82.22 / 94.30")),
    Published("METER", "classifier only", "head", None, 0.0, ("69.93", "73.23", "78.80 / 89.00")),
    Published("METER", "deep prompt", None, 3.68, 13.05, ("67.57", "65.79", "70.90 / 87.70")),
    Published("METER", "LoRA", "lora", 0.29, 0.0, ("74.00", "78.82", "79.86 / 92.60")),
    Published("METER", "adapter", "adapter", 5.34, 1.64, ("74.70", "79.93", "80.38 / 91.90")),
    Published("METER", "scaled PA", "parallel", 3.82, 1.12, ("75.36", "79.86", "80.30 / 91.80")),
    Published("ViLT", "full tuning", "full", 115.43, 0.0, ("71.26", "76.13", "64.40 / 83.50")),
    Published("ViLT", "classifier only", "head", None, 0.0, ("65.75", "66.08", "57.42 / 78.00")),
    Published("ViLT", "LoRA", "lora", 0.15, 0.0, ("68.44", "72.77", "57.44 / 77.70")),
    Published("ViLT", "scaled PA", "parallel", 1.80, 0.44, ("70.40", "75.13", "61.88 / 79.00")),
    Published("ViLT", "adapter", "adapter", 3.56, 0.86, ("70.85", "75.51", "62.68 / 81.40")),
)
"""Source: REFERENCE, published rows; the MACs of LoRA are those of its merged weights."""

COUNTED_AT = "Counted at 384 x 384 px, 40 text tokens, every token of the last stage; ViLT's published images are larger."
ABOUT_DAS = "DAS on METER, VQA, 4 skipped: -11.97 % MACs published, -12.00 % counted (`{costs}`)"


def counted(row: Published) -> tuple[float, float]:
    """Updated parameters without the head, millions, and more MACs, thousand millions, as counted here.

    MACs are counted as the papers do, every token of the last stage too; LoRA is merged, and takes none.

    Raises:
        ValueError: a row whose method is not here.
    """
    if row.method is None:
        raise ValueError(f"{row.title} of {row.model} cannot be counted: there is no such method here")
    model = _whole(row.model)
    with without_content():
        trained = make_method(row.method).insert(model)
    more = _macs(model) - _plain_macs(row.model) if parallel_adapters(model) else 0
    return sum(p.numel() for p in trained) / 1e6, more / 1e9


@cache
def _plain_macs(model: str) -> int:
    """MACs of the pre-trained model."""
    vlp = _whole(model)
    vlp.remove_adapters()
    return _macs(vlp)


def _macs(vlp: VLP) -> int:
    """MACs of one example, nothing skipped."""
    return count_costs(vlp, meta_batch(40, (3, 384, 384)), counting="paper").macs([False] * len(vlp.layers))


def _whole(model: str) -> VLP:
    """The model of the size that the tables are of, without content."""
    with without_content():
        return METER() if model == "METER" else ViLT(ViLTConfig(max_positions=40))


MATCHED = {"retrieval": ("train.itm_weight=0.5",), "coco": ("train.itm_weight=0.5",)}
"""What fine-tuning for retrieval takes besides, as `paper` has it for DAS."""

FILES = ("checkpoint=FILE", "tokenizer=FOLDER", "data_root=FOLDER")
"""What every command names."""


def command(row: Published, task: str, image_size: int | None) -> str:
    """What to type for a cell; `-` where there is no such method here."""
    if row.method is None:
        return "-"
    sized = () if image_size is None else (f"problem.image_size={image_size}",)
    words = (f"{row.model.lower()}_{task}", *FILES, *sized, f"'methods=[\"{row.method}\"]'", *MATCHED.get(task, ()))
    return format_command("adapt compare", *words, "train.steps=STEPS", "seeds=1")


def das_command(model: str, task: str, *changes: str) -> str:
    """What to type for the cell of DAS, with settings that are not the paper's of that task."""
    return format_command("adapt das", f"{model.lower()}_{task}", "paper", *FILES, *changes)


def print_published(image_sizes: Mapping[tuple[str, str], int | None]) -> None:
    """Print the tables, what is counted here beside what is published, what is needed, and every cell's command.

    Args:
        image_sizes: Pixels that the paper has, by model and task.
    """
    from rich.table import Table

    from das_gym.console import Console

    console = Console()
    console.width = max(console.width, 140)
    for model, columns in TASKS.items():
        table = Table(title=f"{model}: published scores, %, and what is counted here", title_justify="left")
        heads = ("method", "updated, M", "counted here", "MACs, G", "counted here", *(name for _, name in columns))
        for head in heads:
            table.add_column(head, justify="left" if head == "method" else "right")
        for row in (each for each in PUBLISHED if each.model == model):
            told = "-" if row.parameters is None else f"{row.parameters:.2f}"
            macs = "-" if row.macs is None else f"{row.macs:+.2f}"
            ours = ("-", "-") if row.method is None else counted(row)
            cells = [value if isinstance(value, str) else f"{value:.2f}" for value in ours]
            table.add_row(row.title, told, cells[0], macs, cells[1], *row.scores)
        console.print(table)
    console.print(ABOUT_DAS.format(costs="above"))
    console.print(COUNTED_AT)
    console.print("No score of these is reproduced here: they need, and cannot be shipped,")
    for name, what in NEEDED.items():
        console.print(f"  {name}: {what}")
    console.print("Each cell, once these are there (STEPS = epochs x examples / batch; the paper trains 10 epochs):")
    for model, columns in TASKS.items():
        for task, _ in columns:
            _print_commands(console, model, task, image_sizes)
    console.print("Problems of the code that no table here has scores of:")
    for model, problems in UNPUBLISHED.items():
        for task, title, changes in problems:
            console.print(f" {model}, {title}:")
            _print_commands(console, model, task, image_sizes, *changes)
    console.print("Not here:")
    for what in LACKING:
        console.print(f"  {what}")


def _print_commands(
    console: Console, model: str, task: str, image_sizes: Mapping[tuple[str, str], int | None], *changes: str
) -> None:
    """DAS's command, with changes to its settings, and that of every row."""
    image_size = image_sizes[model, named_environments()[f"{model.lower()}_{task}"].task]
    console.print(f"  DAS: {das_command(model, task, *changes)}", soft_wrap=True)
    for row in (each for each in PUBLISHED if each.model == model and each.method is not None):
        console.print(f"  {row.title}: {command(row, task, image_size)}", soft_wrap=True)
