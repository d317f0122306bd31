"""Draw the figures of docs/real_model.md from the shipped table and the records of the benchmarks."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.first_figure import label_axes
from das_gym.drawing.charts import new_figure, save_figure
from das_gym.files import read_json
from das_gym.intervals import spearman
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

RECORDS = Path(__file__).parents[1] / "records"

TABLES = (ASSETS / "smollm2" / "text_table.npz", ASSETS / "smolvlm135m" / "answering_table.npz")
"""Of SmolLM2 on text, and of the vision-language model on questions about images."""

CHOOSERS = {
    (4, 5, 13, 14, 15, 16, 17, 18, 26): ("bayes", "#0072b2", "o"),
    (3, 12, 13, 14, 15, 16, 17, 25, 26): ("ShortGPT", "#7b3294", "^"),
    (3, 5, 13, 14, 16, 17, 18, 25, 26): ("greedy (SLEB)", "#00704f", "D"),
    (5, 10, 13, 15, 16, 17, 19, 21, 26): ("random search", "#b34700", "s"),
}
"""Skipped layers to who chose them, color and marker. Every color has a contrast ratio of at least 4.5 to white."""

LEAST = 1e-3
"""Smaller added losses, which may be negative, are drawn here."""

REPAIRS = {
    "none": ("no repair", "removed"),
    "lora, 70 steps": ("LoRA", "removed"),
    "linear": ("linear maps", "linear maps"),
    "linear+lora, 70 steps": ("both", "linear maps"),
}
"""Repair to its label, and to the row of `speed.txt` that generates as fast."""


def single_layers() -> dict[str, np.ndarray]:
    """Return what removing each layer adds to the loss, (30,) nats, for text and for answers about images."""
    table = SubnetTable.load(TABLES[0])
    losses = table.values("loss")
    alone = table.index(np.eye(table.n_layers, dtype=bool))
    record = (RECORDS / "answering_layers.txt").read_text(encoding="utf-8")
    answering = np.array([float(loss) for loss in re.findall(r"^without .* loss ([\d.]+)", record, re.MULTILINE)])
    return {"text": losses[alone] - losses[0], "answers about images": answering[1:] - answering[0]}


def table_rows(record: str) -> dict[str, list[str]]:
    """Return the rows of the Markdown table in a record, by their first cell."""
    lines = (RECORDS / record).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: cells for name, *cells in rows[2:]}


def draw_landscape(path: Path) -> None:
    """Draw what each layer is worth for text and for answering."""
    figure = new_figure(6.4, 3.4)
    axes: Any = figure.add_subplot()
    for (name, added), color, marker in zip(single_layers().items(), ("#0072b2", "#b34700"), "os", strict=True):
        axes.plot(np.maximum(added, LEAST), f"{marker}-", color=color, linewidth=1, markersize=4, label=name)
    axes.set_yscale("log")
    label_axes(axes, "SmolLM2-135M without one layer", "removed layer", "added loss, nats")
    save_figure(figure, path)


def print_agreement() -> None:
    """Print how far the losses of all masks of three layers agree for text and for answers about images."""
    text, answering = (SubnetTable.load(path) for path in TABLES)
    masks = text.masks[text.masks.sum(axis=1) == text.most_skipped]
    on_text, on_answers = (table.values("loss")[table.index(masks)] for table in (text, answering))
    rank = 1 + int((on_answers < on_answers[on_text.argmin()]).sum())
    print(f"{len(masks):,} masks: Spearman {spearman(on_text, on_answers):.2f}; text's best is number {rank} for answers")


def draw_speed(path: Path) -> None:
    """Draw perplexity on news against tokens a second, without nine layers, before and after each repair."""
    tokens = {name: float(row[1].split()[0]) for name, row in table_rows("speed.txt").items()}
    full_perplexity = float(table_rows("real_model_report.txt")["full model"][-1])
    record = read_json(RECORDS / "after_recovery_mixed.json")
    figure = new_figure(6.4, 4.0)
    axes: Any = figure.add_subplot()
    axes.plot(tokens["full model"], full_perplexity, "*", color="#1b1b1b", markersize=14, label="full model")
    for row in record["rows"]:
        layers = tuple(np.flatnonzero(row["mask"]).tolist())
        if layers not in CHOOSERS:
            continue
        name, color, marker = CHOOSERS[layers]
        speeds = [tokens[kind] for _, kind in REPAIRS.values()]
        perplexities = [np.exp(row["recovered"][repair]["losses"][1]) for repair in REPAIRS]
        axes.plot(speeds, perplexities, marker, color=color, label=name)
        if name == "bayes":
            for (label, _), place in zip(REPAIRS.values(), zip(speeds, perplexities, strict=True), strict=True):
                axes.annotate(label, place, (-8, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_yticks([50, 100, 200, 400], ["50", "100", "200", "400"])
    title = "SmolLM2-135M without nine of 30 layers"
    label_axes(axes, title, "tokens a second, one thread of a CPU", "perplexity on news")
    save_figure(figure, path)
