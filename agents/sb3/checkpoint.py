"""What a stopped search with an algorithm of SB3 goes on from, beside its `agent.zip`: `sb3_checkpoint.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.agents.sb3.config import BY_SB3S_NAMES, SB3Config
from das_gym.agents.searching.record import FORMAT, Turn, check_checkpoint

from das_gym.config import build
from das_gym.files import read_json, write_json

CHECKPOINT = "sb3_checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where a search stands.

    Attributes:
        steps: Steps that the algorithm has taken.
        turns: All turns.
        env: The environments' `get_state()`, which says what examples come next; None where they have none.

    Raises:
        ValueError: fewer steps than none.
    """

    steps: int = 0
    turns: tuple[Turn, ...] = ()
    env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.steps < 2**53:
            raise ValueError(f"steps={self.steps} is not allowed; use 0 or more")

    def save(self, folder: Path, config: SB3Config) -> None:
        """Write it into a run folder, with the settings of the search."""
        state = {"format": FORMAT, "config": dataclasses.asdict(config), "steps": self.steps, "env": self.env}
        write_json(folder / CHECKPOINT, {**state, "turns": [vars(turn) for turn in self.turns]}, indent=None)

    @classmethod
    def load(cls, folder: Path, config: SB3Config) -> Checkpoint:
        """That of a run folder; one of no turns where none is there yet.

        Raises:
            ValueError: it is of another search than `config`, or of another version.
        """
        path = folder / CHECKPOINT
        if not path.is_file():
            return cls()
        state = read_json(path)
        check_checkpoint(path, state, config, BY_SB3S_NAMES)
        try:
            return build(cls, {name: state[name] for name in ("steps", "turns", "env")})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); begin a new search") from error
