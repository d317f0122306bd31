"""`checkpoint.json`, from which a stopped search continues: of ask/tell agents and of Stable-Baselines3 alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.agents.searching.record import FORMAT, Turn

from das_gym.config import build
from das_gym.files import explain_damage, read_json, write_json

CHECKPOINT = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a search after a turn.

    Attributes:
        agent: `Agent.state_dict()`; empty for an algorithm of Stable-Baselines3, which trains again.
        env: The environment's `get_state()`, which determines the next examples; None if it has none.
        turns: All turns.
    """

    agent: dict[str, Any]
    env: Any
    turns: tuple[Turn, ...]

    def save(self, folder: Path, config: Any) -> None:
        """Write it into a run folder, with the settings of the search (a dataclass)."""
        record = {"format": FORMAT, "config": dataclasses.asdict(config), "agent": self.agent, "env": self.env}
        write_json(folder / CHECKPOINT, {**record, "turns": [vars(turn) for turn in self.turns]}, indent=None)

    @classmethod
    def load(cls, folder: Path, config: Any, n_layers: int) -> Checkpoint | None:
        """Read the checkpoint of a search with the settings `config` in a run folder; None if there is none yet."""
        path = folder / CHECKPOINT
        if not path.is_file():
            return None
        record = read_json(path)
        is_ours = isinstance(record, Mapping) and record.get("format") == FORMAT
        if not is_ours or not isinstance(record.get("config"), Mapping):
            raise ValueError(f"{path} is not a checkpoint of this version. Start a new search")
        # Through JSON, as the recorded settings went: tuples become lists.
        mine = json.loads(json.dumps(dataclasses.asdict(config)))
        for name, value in record["config"].items():
            if name != "save_every" and mine.get(name) != value:
                raise ValueError(
                    f"{path} belongs to a search with another `{name}`: got {mine.get(name)!r}, expected {value!r}. "
                    "Give the same settings, or another folder"
                )
        with explain_damage(path, "start a new search"):
            checkpoint = build(cls, {name: record[name] for name in ("agent", "env", "turns")})
            if any(len(mask) != n_layers for turn in checkpoint.turns for mask in turn.masks):
                raise ValueError(f"its masks do not have {n_layers} layers")
        return checkpoint


def saved_costs(folder: Path) -> Mapping[str, Any] | None:
    """Return the measured costs that a checkpoint continues with; None if it has none. `Checkpoint.load` reports damage."""
    value = read_json(folder / CHECKPOINT)
    for name in ("config", "env_kwargs", "costs"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else None
