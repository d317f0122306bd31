"""The explorer: a page over a table, on which a click skips a unit and the score of the mask is shown."""

from __future__ import annotations

import base64
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.page import write_page
from das_gym.tables.table import SPLITS, SubnetTable


def write_explorer(path: str | os.PathLike[str], table: SubnetTable) -> Path:
    """Write the page and return its path. It holds the whole table: about 22 bytes a mask, and 11 a group of examples."""
    meta = table.meta
    groups = []
    keys = None
    if meta.max_skipped is not None:  # a complete table needs none: the bits of a row number are its mask
        keys = ";".join(",".join(map(str, np.flatnonzero(mask))) for mask in table.masks)
    for name in table.groups_apart:
        part = table.group_table(name)
        counts = {"reward": part.meta.reward_examples, "test": part.meta.test_examples}
        metrics = {split: _floats(part.scores[split].metrics) for split in SPLITS}
        groups.append({"name": name, "examples": counts, "metric": metrics})
    data = {
        "units": asdict(Architecture.from_table(table))["units"],
        "metric": meta.metric_name.replace("_", " "),
        "macs": {"full": meta.macs_full, "unskipped": int(table.macs[0]), "savings": table.layer_macs.savings.tolist()},
        "keys": keys,
        "most": table.n_layers if meta.max_skipped is None else meta.max_skipped,
        "splits": {s: {"loss": _floats(each.losses), "metric": _floats(each.metrics)} for s, each in table.scores.items()},
        "groups": groups,
    }
    examples = {"reward": meta.reward_examples, "test": meta.test_examples}
    title = f"{meta.env_id}: which units can be skipped?"
    shown = {"meta": meta, "examples": examples, "masks": len(table.masks), "groups": groups}
    shown["extra_macs"] = int(table.macs[0]) / meta.macs_full - 1  # row 0 skips nothing
    return write_page(path, "explorer", data, title=title, **shown)


def _floats(values: np.ndarray) -> str:
    """Return base64 of little-endian float32, which JavaScript reads with infinities."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
