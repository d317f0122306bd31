"""Draw the figures of docs/real_model.md from the shipped table and the records of the benchmarks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.drawing.charts import new_figure, save_figure
from das_gym.files import read_json
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

RECORDS = Path(__file__).parents[1] / "records"

CHOOSERS = {
    (4, 5, 13, 14, 15, 16, 17, 18, 26): ("bayes", "#0072b2", "o"),
    (3, 12, 13, 14, 15, 16, 17, 25, 26): ("ShortGPT", "#7b3294", "^"),
    (3, 5, 13, 14, 16, 17, 18, 25, 26): ("greedy (SLEB)", "#00704f", "D"),
    (5, 10, 13, 15, 16, 17, 19, 21, 26): ("random search", "#b34700", "s"),
}
"""Skipped layers to who chose them, color and marker. Every color has a contrast ratio of at least 4.5 to white."""

LEAST = 1e-3
"""Smaller added losses, which may be negative, are drawn here."""

REPAIRS = {"none": "removed", "lora, 70 steps": "removed", "linear": "linear maps", "linear+lora, 70 steps": "linear maps"}
"""Repair to the row of `speed.txt` that generates as fast."""

LABELS = {"none": "no repair", "lora, 70 steps": "LoRA", "linear": "linear maps", "linear+lora, 70 steps": "both"}


def single_layers() -> dict[str, np.ndarray]:
    """Return what removing each layer adds to the loss, (30,) nats, for text and for answers about images."""
    table = SubnetTable.load(ASSETS / "smollm2" / "text_table.npz")
    losses = table.values("loss")
    alone = table.index(np.eye(table.n_layers, dtype=bool))
    lines = (RECORDS / "answering_layers.txt").read_text(encoding="utf-8").splitlines()[1:]
    answering = np.array([float(re.search(r"loss ([\d.]+)", line)[1]) for line in lines])  # type: ignore[index]
    return {"text": losses[alone] - losses[0], "answers about images": answering[1:] - answering[0]}


def draw_landscape(path: Path) -> None:
    """Draw what each layer is worth for text and for answering."""
    figure = new_figure(6.4, 3.4)
    axes: Any = figure.add_subplot()
    for (name, added), color, marker in zip(single_layers().items(), ("#0072b2", "#b34700"), "os", strict=True):
        axes.plot(np.maximum(added, LEAST), f"{marker}-", color=color, linewidth=1, markersize=4, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("removed layer")
    axes.set_ylabel("added loss, nats")
    axes.set_title("SmolLM2-135M without one layer", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def draw_speed(path: Path) -> None:
    """Draw perplexity on news against tokens a second, without nine layers, before and after each repair."""
    rows = (RECORDS / "speed.txt").read_text(encoding="utf-8").splitlines()[3:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    tokens = {row[0]: float(row[2].split()[0]) for row in cells}
    record = read_json(RECORDS / "after_recovery_mixed.json")
    figure = new_figure(6.4, 4.0)
    axes: Any = figure.add_subplot()
    axes.plot(tokens["full model"], 49.78, "*", color="#1b1b1b", markersize=14, label="full model")
    for row in record["rows"]:
        layers = tuple(np.flatnonzero(row["mask"]).tolist())
        if layers not in CHOOSERS:
            continue
        name, color, marker = CHOOSERS[layers]
        perplexities = [np.exp(row["recovered"][repair]["losses"][1]) for repair in REPAIRS]
        axes.plot([tokens[kind] for kind in REPAIRS.values()], perplexities, marker, color=color, label=name)
        if name == "bayes":
            for repair, value in zip(REPAIRS, perplexities, strict=True):
                place = (tokens[REPAIRS[repair]] - 0.12, value)
                axes.annotate(LABELS[repair], place, ha="right", va="center", fontsize=8)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_yticks([50, 100, 200, 400], ["50", "100", "200", "400"])
    axes.set_xlabel("tokens a second, one thread of a CPU")
    axes.set_ylabel("perplexity on news")
    axes.set_title("SmolLM2-135M without nine of 30 layers", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)
