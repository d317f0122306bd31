"""`python -m agents explore TABLE`: a page over a table, on which units are skipped by a click.

python -m agents explore meter_vqa                          the bundled table of METER on VQA
python -m agents explore mine.npz with out=mine.html        a custom table
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from das_gym.agents.searching.setup import table_path

from das_gym.commands.runs import PluginSettings
from das_gym.drawing.explorer import write_explorer
from das_gym.envs.tabular_env import load_table
from das_gym.files import at_home
from das_gym.names import check_names
from das_gym.registration import DEFAULT_ENV, entry_of, named_environments


@dataclass(frozen=True)
class ExploreSettings(PluginSettings):
    """The settings of `python -m agents explore`.

    Attributes:
        table: File of a table, or an environment with a bundled table: `meter_vqa` or its id.
        out: HTML file to write. None is explore_TABLE.html in the working folder.
    """

    table: str = DEFAULT_ENV
    out: str | None = None


def main(settings: ExploreSettings) -> None:
    """Write the page."""
    if settings.table.endswith(".npz"):
        path = at_home(settings.table)
    else:
        named = named_environments()
        env_id = named[settings.table].id if settings.table in named else settings.table
        if entry_of(env_id) is None:
            check_names([settings.table], named, "table (a file that ends in .npz, or an environment)", own=True)
        path = table_path(env_id, {})
    out = Path(settings.out or f"explore_{Path(settings.table).stem}.html")
    write_explorer(out, load_table(path))
    print(f"explorer: {out} ({out.stat().st_size / 1e3:.0f} kB, opens in any browser, works offline)")
