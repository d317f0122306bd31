"""The explorer: a page over a table, on which a click skips a unit and the score of the mask is shown."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.page import write_page
from das_gym.tables.table import SPLITS, SubnetTable


@dataclass(frozen=True)
class Replay:
    """A search that the page replays.

    Attributes:
        name: Such as "run 3".
        about: The agent.
        masks: (n, n_layers) 0/1, in the order of scoring.
        rewards: (n,) rewards; None if not finite.
        best: (n,) best reward so far of masks within the budget.
    """

    name: str
    about: str
    masks: Sequence[Sequence[int]]
    rewards: Sequence[float | None]
    best: Sequence[float | None]


def write_explorer(path: str | os.PathLike[str], table: SubnetTable, replays: Sequence[Replay] = ()) -> Path:
    """Write the page and return its path. It holds the whole table: about 22 bytes a mask, and 11 a group of examples."""
    for replay in replays:
        try:
            table.index(np.array(replay.masks))
        except ValueError as error:
            raise ValueError(f"{replay.name} did not search this table: {error}") from error
    meta, groups = table.meta, _groups(table)
    data = {
        "units": asdict(Architecture.of_table(table))["units"],
        "metric": meta.metric_name.replace("_", " "),
        "macs": {"full": meta.macs_full, "unskipped": int(table.macs[0]), "savings": table.layer_macs.savings.tolist()},
        "keys": None if meta.max_skipped is None else ";".join(map(_key, table.masks)),
        "most": table.n_layers if meta.max_skipped is None else meta.max_skipped,
        "splits": {s: {"loss": _floats(each.losses), "metric": _floats(each.metrics)} for s, each in table.scores.items()},
        "groups": groups,
        "replays": [{**asdict(replay), "masks": [_key(mask) for mask in replay.masks]} for replay in replays],
    }
    examples = {"reward": meta.reward_examples, "test": meta.test_examples}
    title = f"{meta.env_id}: which units can be skipped?"
    shown = {"meta": meta, "examples": examples, "masks": len(table.masks), "replays": replays, "groups": groups}
    shown["extra_macs"] = int(table.macs[0]) / meta.macs_full - 1  # row 0 skips nothing
    return write_page(path, "explorer", data, title=title, **shown)


def _key(mask: Any) -> str:
    """Return a mask as the numbers of its skipped units: `0,3`."""
    return ",".join(map(str, np.flatnonzero(mask)))


def _groups(table: SubnetTable) -> list[dict[str, Any]]:
    """Return name, number of examples and metrics of every mask, by split, for each group of examples."""
    found = []
    for name in table.groups_apart:
        part = table.group_table(name)
        counts = {"reward": part.meta.reward_examples, "test": part.meta.test_examples}
        metrics = {split: _floats(part.scores[split].metrics) for split in SPLITS}
        found.append({"name": name, "examples": counts, "metric": metrics})
    return found


def _floats(values: np.ndarray) -> str:
    """Return base64 of little-endian float32, which JavaScript reads with infinities."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
