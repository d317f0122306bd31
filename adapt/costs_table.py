"""The paper's table of MACs: METER-base on VQA without adapters, with them, and with four layers skipped.

python -m adapt costs                                        as das_gym runs them
python -m adapt costs with counting=paper                    as the paper counts them: every token of the last stage too
python -m adapt costs with image_size=576 text_tokens=50
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from das_gym.adapt.paper_costs import paper_table
from rich.table import Table

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.console import Console


@dataclass(frozen=True)
class CostsSettings(CommandSettings):
    """The settings of `python -m adapt costs`.

    Attributes:
        image_size: Side of the image in pixels, at least 1.
        text_tokens: Length of the text in tokens, at least 1.
        answers: Number of outputs of the VQA head, at least 1.
        counting: Count what runs, or as the paper counts (every token of the last stage too).
    """

    image_size: int = 384
    text_tokens: int = 40
    answers: int = 3129
    counting: Literal["runs", "paper"] = "runs"

    def __post_init__(self) -> None:
        for name in ("image_size", "text_tokens", "answers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; use 1 or more")


def main(words: Sequence[str]) -> None:
    """Print the table that the words behind `python -m adapt costs` ask for."""
    settings = parse_or_help(CostsSettings, words, "adapt costs")
    if settings is None:
        return
    rows = paper_table(settings.image_size, settings.text_tokens, settings.answers, settings.counting)
    sizes = f"{settings.image_size} px, {settings.text_tokens} text tokens, {settings.answers} answers"
    counted = {
        "runs": "Counted as they run, skipping the first layers; `counting=paper` counts as the paper does.",
        "paper": "Counted as the paper does; it has 11.97 % saved with k = 4 (fvcore's count, with LayerNorms).",
    }
    table = Table(title=f"METER-base, {sizes}, one example", caption=counted[settings.counting])
    units = {"macs": 1e9, "change": 1e9, "percent": 1.0, "adapters": 1e6, "adapters_and_norms": 1e6}
    shown = {"macs": ".3f", "change": "+.3f", "percent": "+.2f", "adapters": ".2f", "adapters_and_norms": ".2f"}
    for column in ("", "MACs\n(G)", "change\n(G)", "change\n(%)", "adapters\n(M)", "and norms\n(M)"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for row in rows:
        table.add_row(str(row["what"]), *(f"{float(row[name]) / units[name]:{shown[name]}}" for name in units))
    console = Console()
    console.width = max(console.width, 80)
    console.print(table)
