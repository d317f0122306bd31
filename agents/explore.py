"""`python -m agents explore TABLE`: a page over a table, on which units are skipped by a click.

python -m agents explore meter_vqa                          the bundled table of METER on VQA
python -m agents explore mine.npz with out=mine.html        a custom table
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium

from das_gym.config import check_names
from das_gym.drawing.explorer import write_explorer
from das_gym.envs.tabular_env import bundled_table, load_table
from das_gym.files import at_home
from das_gym.registration import CHECKPOINT_TABLES, DEFAULT_ENV, ENVIRONMENTS
from das_gym.runs import PluginSettings


@dataclass(frozen=True)
class ExploreSettings(PluginSettings):
    """The settings of `python -m agents explore`.

    Attributes:
        table: File of a table, or an environment with a bundled table: `meter_vqa` or its id.
        out: HTML file to write. None is explore_TABLE.html in the working folder.
    """

    table: str = DEFAULT_ENV
    out: str | None = None

    def path(self) -> Path:
        """Return the path of the table's file."""
        if self.table.endswith(".npz"):
            return at_home(self.table)
        if self.table in CHECKPOINT_TABLES:
            return Path(gymnasium.spec(self.table).kwargs["table"])
        entries = {id: entry for entry in ENVIRONMENTS.values() for id in (entry.id, entry.tabular_id)}
        entries |= {entry.short: entry for entry in ENVIRONMENTS.values()}
        check_names([self.table], entries, "table (a file that ends in .npz, or an environment)", own=True)
        return bundled_table(entries[self.table].model, entries[self.table].task)


def main(settings: ExploreSettings) -> None:
    """Write the page."""
    out = Path(settings.out or f"explore_{Path(settings.table).stem}.html")
    write_explorer(out, load_table(settings.path()))
    print(f"explorer: {out} ({out.stat().st_size / 1e3:.0f} kB, opens in any browser, works offline)")
