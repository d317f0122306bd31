"""How additive, how rugged and how many-hilled the landscapes of tables are.

python -m agents landscape                           every table that comes with das_gym, at skip_num=4
python -m agents landscape with table=FILE skip_num=3
python -m agents landscape with suite=bundled        every problem of the bundled suite, in short; or a suite's folder
python -m agents landscape with suite=bundled 'budgets=["latency"]'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.config import choice
from das_gym.files import at_home
from das_gym.problem.budget import Budget
from das_gym.registration import ENVIRONMENTS
from das_gym.tables.landscape import Landscape, landscape
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, SUITE_SPLITS, load_suite
from das_gym.tables.table import SubnetTable

RUGGED = 0.8
"""Of a problem with an R2 below, a sum over units is a poor picture."""


@dataclass(frozen=True)
class LandscapeSettings(CommandSettings):
    """The settings of `python -m agents landscape`.

    Attributes:
        table: File of a table. None shows every bundled table.
        skip_num: Number of layers to skip.
        suite: Show the problems of a suite instead of tables: `bundled`, or the folder of a suite.
        budgets: Kinds of budgets of the problems: a number of layers, a share of MACs, a share of latency.
    """

    table: str | None = None
    skip_num: int = 4
    suite: str | None = None
    budgets: tuple[str, ...] = choice(DEFAULT_BUDGETS, BUDGET_KINDS)


def tables_of(settings: LandscapeSettings) -> dict[str, SubnetTable]:
    """The tables that are meant, by what to call them."""
    if settings.table is not None:
        path = at_home(settings.table)
        return {path.name: SubnetTable.load(path)}
    return {entry.short: SubnetTable.load(entry.table) for entry in ENVIRONMENTS.values() if entry.table is not None}


def table_landscape(table: SubnetTable, skip_num: int, reward: str = "exp_neg_loss") -> Landscape:
    """That of a table's rewards under a budget by count."""
    return landscape(table.masks, table.values(reward), Budget(table.n_layers, skip_num))


def suite_lines(suite: str, budgets: Sequence[str] = DEFAULT_BUDGETS) -> list[str]:
    """A line a split: how many problems, and what they are like in the median."""
    lines = [
        f"{'split':<8}{'models':>7}{'problems':>9}{'median R2':>11}{f'R2 < {RUGGED}':>10}{'autocorr.':>11}{'optima':>8}"
    ]
    for split in SUITE_SPLITS:
        problems = load_suite(None if suite == "bundled" else suite, split, budgets=budgets).problems
        found = [landscape(p.table.masks, p.rewards, p.budget) for p in problems]
        fits = np.array([each.additivity for each in found])
        alike, optima = np.nanmedian([e.autocorrelation for e in found]), np.median([e.optima for e in found])
        models = len({p.source.name for p in problems})
        lines.append(
            f"{split:<8}{models:>7}{len(problems):>9}{np.median(fits):>11.2f}{100 * np.mean(fits < RUGGED):>8.0f} %"
            f"{alike:>11.2f}{optima:>8.0f}"
        )
    return lines


def main(words: Sequence[str]) -> None:
    """Print what landscapes are like, as the words behind `python -m agents landscape` say."""
    settings = parse_or_help(LandscapeSettings, words, "agents landscape")
    if settings is None:
        return
    if settings.suite is not None:
        print("\n".join(suite_lines(settings.suite, settings.budgets)))
        return
    print(f"{'table':<34}{'masks':>7}{'R2 of a sum over units':>24}{'autocorrelation':>17}{'local optima':>14}")
    for name, table in tables_of(settings).items():
        if table.meta.max_skipped is not None:
            print(f"{name:<34} holds masks of up to {table.meta.max_skipped} skipped units: left out")
            continue
        found = table_landscape(table, settings.skip_num)
        print(f"{name:<34}{found.masks:>7,}{found.additivity:>24.3f}{found.autocorrelation:>17.3f}{found.optima:>14}")
