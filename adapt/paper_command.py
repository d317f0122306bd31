"""The paper's settings for every model and task, ours, MACs, and the published tables with the command of each cell.

python -m adapt paper

Settings come with their source, and with the differences between the paper, its scripts and its code. METER-base and
ViLT-B/32 are built without weights, since parameters and MACs do not depend on them.
"""

import textwrap
from typing import NamedTuple

import numpy as np
from das_gym.adapt.methods.base import make_method
from das_gym.adapt.paper import DIFFERENCES, PAPER, PUBLISHED_LAYERS, SOURCES, recipe_changes
from torch import Tensor

from das_gym.commands.commandline import format_command
from das_gym.commands.runs import PluginSettings
from das_gym.drawing.report import Table
from das_gym.models.adapters import parallel_adapters
from das_gym.models.base import VLP
from das_gym.models.inputs import meta_batch
from das_gym.models.macs import without_content
from das_gym.models.meter.model import METER
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.costs import count_costs
from das_gym.registration import named_environments
from das_gym.tasks.base import build_classifier

IMAGE_SIZE = 384
TEXT_TOKENS = 40
"""Pixels and tokens of the example whose MACs are counted: those of the paper's VQA."""

VQA_ANSWERS = 3129
"""Outputs of the VQA head."""

SCORE_COLUMNS = {"vqa": "VQA test-dev", "nlvr2": "NLVR2 test-P", "retrieval": "Flickr30k IR / TR R@1"}
"""Columns of both tables by task."""

TASKS: dict[str, dict[str, tuple[str, ...]]] = {
    "METER": {
        "vqa": (),
        "nlvr2": (),
        "retrieval": (),
        "coco": ("das.learning_rate=5e-6", "das.train_on_reward=False", "das.reward_split=train"),
    },
    "ViLT": {"vqa": (), "nlvr2": (), "retrieval": (), "coco": ("das.train_on_reward=False",)},
}
"""Named configs of the code by model, with the settings in which COCO differs from Flickr30k. No table has scores of
COCO. Source: the code's configs and data sets. Both train on COCO's train and restval splits; METER scores masks on
restval, ViLT on val."""

NEEDED_FILES = {
    "METER": "checkpoint meter_clip16_288_roberta_pretrain.ckpt (METER's authors) and RoBERTa-base's tokenizer",
    "ViLT": "checkpoint vilt_200k_mlm_itm.ckpt (ViLT's authors; or dandelin/vilt-b32-mlm) and BERT-base-uncased's tokenizer",
    "vqa": "VQAv2's questions, annotations and COCO images; test-dev answers of `adapt predict` go to the VQA server",
    "nlvr2": "NLVR2's JSON files and images",
    "retrieval": "Karpathy's dataset_flickr30k.json and the Flickr30k images",
    "coco": "Karpathy's dataset_coco.json and COCO's train2014 and val2014 images",
}
"""Files that a cell needs and that the package does not contain."""


class PublishedRow(NamedTuple):
    """A row of the tables of the paper's laboratory.

    Attributes:
        method: A key of `METHODS`; None for deep prompts, which das_gym does not have.
        parameters: Updated parameters in millions, without heads. None if not published.
        macs: MACs in billions beyond those of the pre-trained model. None if not published.
        scores: By column of `SCORE_COLUMNS`.
    """

    model: str
    title: str
    method: str | None
    parameters: float | None
    macs: float | None
    scores: tuple[str, ...]


PUBLISHED = (
    PublishedRow("METER", "full tuning", "full", 323.31, 0.0, ("77.43", "83.05", "82.22 / 94.30")),
    PublishedRow("METER", "classifier only", "head", None, None, ("69.93", "73.23", "78.80 / 89.00")),
    PublishedRow("METER", "deep prompt", None, 3.68, 13.05, ("67.57", "65.79", "70.90 / 87.70")),
    PublishedRow("METER", "LoRA", "lora", 0.29, 0.0, ("74.00", "78.82", "79.86 / 92.60")),
    PublishedRow("METER", "adapter", "adapter", 5.34, 1.64, ("74.70", "79.93", "80.38 / 91.90")),
    PublishedRow("METER", "scaled PA", "parallel", 3.82, 1.12, ("75.36", "79.86", "80.30 / 91.80")),
    PublishedRow("ViLT", "full tuning", "full", 115.43, 0.0, ("71.26", "76.13", "64.40 / 83.50")),
    PublishedRow("ViLT", "classifier only", "head", None, None, ("65.75", "66.08", "57.42 / 78.00")),
    PublishedRow("ViLT", "LoRA", "lora", 0.15, 0.0, ("68.44", "72.77", "57.44 / 77.70")),
    PublishedRow("ViLT", "scaled PA", "parallel", 1.80, 0.44, ("70.40", "75.13", "61.88 / 79.00")),
    PublishedRow("ViLT", "adapter", "adapter", 3.56, 0.86, ("70.85", "75.51", "62.68 / 81.40")),
)
"""Source: the published tables. The MACs of LoRA are those of its merged weights."""

COUNTINGS = {
    "runs": "Counted as the model runs, with the first layers skipped.",
    "paper": "Counted as the paper counts: every token of the last stage too. It has 11.97 % saved with k = 4.",
}
COST_COLUMNS = ("", "MACs, G", "change, G", "change, %", "adapters, M", "and norms, M")


def main(settings: PluginSettings) -> None:
    """Print settings, sources, differences, costs and tables."""
    print("Settings of the paper's pipeline, and ours where they differ:")
    for model in dict.fromkeys(model for model, _ in PAPER):
        _settings_table(model).print()
    _print_lines("Where each comes from:", SOURCES)
    _print_lines("Why ours differ:", {f"{name}={value}": reason for name, (value, reason) in recipe_changes("VLM").items()})
    _print_lines("Where the paper, its scripts and its code differ:", dict(DIFFERENCES))
    _print_lines("Layers of LLaVA-1.5-7B that its scripts skip:", {n: str(each) for n, each in PUBLISHED_LAYERS.items()})
    for counting, caption in COUNTINGS.items():
        costs_table(counting, caption).print()
    for model in TASKS:
        _published_table(model).print(width=140)
    print("DAS on METER, VQA, 4 skipped: -11.97 % MACs published, -12.00 % counted (see the table above)")
    _print_lines("These scores need files that the package does not contain:", NEEDED_FILES)
    print("The command of each cell, with these files (STEPS = 10 epochs x examples / batch):")
    for model, tasks in TASKS.items():
        for task in tasks:
            settings_of_cell = PAPER[model, named_environments()[f"{model.lower()}_{task}"].task]
            for command in commands(model, task, settings_of_cell.image_size):
                print(f"  {command}")


def _settings_table(model: str) -> Table:
    of_tasks = {task: settings for (name, task), settings in PAPER.items() if name == model}
    own = recipe_changes(model)
    rows = []
    for name in SOURCES:
        theirs = [getattr(settings, name) for settings in of_tasks.values()]
        ours = own[name][0] if name in own else theirs[0]
        is_same = name not in own or all(value == ours for value in theirs)
        rows.append((name, *map(str, theirs), "same" if is_same else str(ours)))
    columns = ("setting", *of_tasks, "ours")
    return Table(columns, tuple(rows), model, text_columns=tuple(range(len(columns))))


def _print_lines(title: str, lines: dict[str, str]) -> None:
    print(title)
    for name, text in lines.items():
        print(textwrap.fill(f"{name}: {text}", 80, initial_indent="  ", subsequent_indent="      "))


def costs_table(counting: str, note: str) -> Table:
    """Return MACs and parameters of METER-base on VQA: without adapters, with them, and with four layers skipped."""
    with without_content():
        vlp = METER()
        layers = vlp.config.fusion_layers
        width = vlp.config.hidden_size
        head = build_classifier(2 * width, VQA_ANSWERS, 2 * width)
    costs = count_costs(vlp, _example_batch(), head, counting=counting)
    rows: list[tuple[str, ...]] = [("no adapters", f"{costs.macs_full / 1e9:.3f}", "+0.000", "+0.00", "0.00", "0.00")]
    for text, image in ((0, 0), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4)):
        mask = np.array([i < text for i in range(layers)] + [i < image for i in range(layers)])
        with_norms = int(np.where(mask, costs.skip_parameters, costs.parallel_parameters).sum())
        norms = int(np.where(mask, 1, 3).sum()) * 2 * width
        title = f"DAS, {text} text + {image} image" if text + image else "adapters, no skipping"
        macs = costs.macs(mask)
        change = f"{(macs - costs.macs_full) / 1e9:+.3f}", f"{-100 * costs.macs_saved(mask):+.2f}"
        parameters = f"{(with_norms - norms) / 1e6:.2f}", f"{with_norms / 1e6:.2f}"
        rows.append((title, f"{macs / 1e9:.3f}", *change, *parameters))
    title = f"METER-base on VQA, {IMAGE_SIZE} px, {TEXT_TOKENS} text tokens, one example"
    return Table(COST_COLUMNS, tuple(rows), title, (note,))


def _full_size_model(model: str) -> METER | ViLT:
    with without_content():
        return METER() if model == "METER" else ViLT(ViLTConfig(max_positions=TEXT_TOKENS))


def _example_batch() -> dict[str, Tensor]:
    return meta_batch(TEXT_TOKENS, (3, IMAGE_SIZE, IMAGE_SIZE))


def count(row: PublishedRow) -> tuple[float, float]:
    """Return updated parameters without the head (millions) and additional MACs (billions) as counted here.

    MACs are counted as in the papers, with every token of the last stage. LoRA is merged and adds none.
    """
    model = _full_size_model(row.model)
    plain = _full_size_model(row.model)
    plain.remove_adapters()
    with without_content():
        updated = sum(p.numel() for p in make_method(row.method or "").insert(model))
    # Other methods run as many MACs as the model without them.
    vlps: tuple[VLP, ...] = (model, plain) if parallel_adapters(model) else ()
    macs = [count_costs(vlp, _example_batch(), counting="paper").macs([False] * len(vlp.layers)) for vlp in vlps]
    return updated / 1e6, (macs[0] - macs[1]) / 1e9 if macs else 0.0


def _published_table(model: str) -> Table:
    rows = []
    for row in PUBLISHED:
        if row.model != model:
            continue
        parameters, macs = ("-", "-") if row.method is None else (f"{number:.2f}" for number in count(row))
        published = "-" if row.parameters is None else f"{row.parameters:.2f}"
        published_macs = "-" if row.macs is None else f"{row.macs:+.2f}"
        rows.append((row.title, published, parameters, published_macs, macs, *row.scores))
    columns = ("method", "updated, M", "counted here", "MACs, G", "counted here", *SCORE_COLUMNS.values())
    note = "Counted at 384 x 384 px, 40 text tokens, every token of the last stage; ViLT's published images are larger."
    return Table(columns, tuple(rows), f"{model}: published scores, %, and what is counted here", (note,))


def commands(model: str, task: str, image_size: int | None) -> tuple[str, str]:
    """Return the commands of a column's cells, given the model and a key of `TASKS`: DAS, and the other methods."""
    files = ("checkpoint=FILE", "tokenizer=FOLDER", "data_root=FOLDER")
    name = f"{model.lower()}_{task}"
    das = format_command("adapt das", name, "paper", *files, *TASKS[model][task])
    methods = ",".join(f'"{row.method}"' for row in PUBLISHED if row.model == model and row.method is not None)
    more: tuple[str, ...] = () if image_size is None else (f"image_size={image_size}",)
    more += ("train.itm_weight=0.5",) if named_environments()[name].task == "retrieval" else ()
    return das, format_command(
        "adapt compare", name, *files, *more, f"'methods=[{methods}]'", "train.steps=STEPS", "seeds=1"
    )
