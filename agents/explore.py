"""`python -m agents explore TABLE`: a page over a table, on which units are skipped by a click.

python -m agents explore meter_vqa                          the bundled table of METER on VQA
python -m agents explore mine.npz with out=mine.html        a custom table
python -m agents explore meter_vqa with runs=[3,4]          with searches to replay
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
from das_gym.agents.searching.picture import progress_of
from das_gym.agents.searching.record import SearchResult

from das_gym.config import check_names
from das_gym.drawing.explorer import Replay, write_explorer
from das_gym.envs.tabular_env import bundled_table, load_table
from das_gym.files import at_home
from das_gym.registration import CHECKPOINT_TABLES, DEFAULT_ENV, ENVIRONMENTS, entry_of
from das_gym.runs import RUNS_DIR, PluginSettings, find_run
from das_gym.tables.table import SubnetTable


@dataclass(frozen=True)
class ExploreSettings(PluginSettings):
    """The settings of `python -m agents explore`.

    Attributes:
        table: File of a table, or an environment with a bundled table: `meter_vqa` or its id.
        out: HTML file to write. None is explore_TABLE.html in the working folder.
        runs: Ids of searches on this table to replay in the page.
        runs_dir: Folder of all runs.
    """

    table: str = DEFAULT_ENV
    out: str | None = None
    runs: tuple[int, ...] = ()
    runs_dir: str = RUNS_DIR

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
    path = settings.path()
    table = load_table(path)
    replays = [replay_of(find_run(settings.runs_dir, run), table) for run in settings.runs]
    out = Path(settings.out or f"explore_{Path(settings.table).stem}.html")
    write_explorer(out, table, replays)
    print(f"explorer: {out} ({out.stat().st_size / 1e3:.0f} kB, opens in any browser, works offline)")


def replay_of(folder: Path, table: SubnetTable) -> Replay:
    """Return a search in the form that the explorer of a table replays."""
    result = SearchResult.load(folder)
    entry = entry_of(result.env_id)
    searched = result.env_id if entry is None else entry.id
    if searched != table.meta.env_id or tuple(result.layer_names) != table.meta.layer_names:
        raise ValueError(
            f"run {folder.name} searched {len(result.layer_names)} units of {searched}, and the table is of "
            f"{table.n_layers} units of {table.meta.env_id}: give its table, or leave the run out"
        )
    progress = progress_of(result)
    if progress is None:
        raise ValueError(f"run {folder.name} has no turns to replay: search_history.json is missing")
    masks = [mask for turn in result.history for mask in turn.masks]
    about = f"{result.agent}, seed {result.seed}"
    return Replay(f"run {folder.name}", about, masks, progress.rewards, progress.best)
