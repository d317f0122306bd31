"""What a search leaves behind: its turns and its result, as records that read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from das_gym.agents.searching.environment import find_scorer

from das_gym.config import build
from das_gym.files import read_json, write_json
from das_gym.plugins import imported_plugins
from das_gym.problem.budget import keeps_budget
from das_gym.problem.config import recorded_settings
from das_gym.problem.mask_space import skipped_names
from das_gym.runs import library_versions

FORMAT = 1
RECORD = "search.json"
HISTORY = "search_history.json"
SCORES = ("loss", "metric", "macs", "macs_saved")
BEST_SEEN = ("mask", "reward", *SCORES, "skipped_layers")


@dataclass(frozen=True)
class Turn:
    """One turn of a search, in plain JSON values.

    Attributes:
        masks: The m masks of the turn, 0/1 a layer.
        rewards: Their rewards; None where a number is not finite, here and below.
        loss: Their losses, nats.
        metric: Their metrics, 0..1.
        macs: Their MACs an example.
        macs_saved: The share of MACs that they save.
        skip_probabilities: The agent's after the turn; None if it has none.
        preferences: The agent's after the turn; None if it has none.
        examples_share: Share of the reward examples that the masks were scored on.

    Raises:
        ValueError: masks of other values than 0 and 1, or not one score a mask.
    """

    masks: list[list[int]]
    rewards: list[float | None]
    loss: list[float | None]
    metric: list[float | None]
    macs: list[int]
    macs_saved: list[float]
    skip_probabilities: list[float] | None
    preferences: list[float] | None
    examples_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rewards", *SCORES):
            if len(getattr(self, name)) != len(self.masks):
                raise ValueError(
                    f"a turn has {len(self.masks)} masks and {len(getattr(self, name))} of {name}; give one each"
                )
        for index, mask in enumerate(self.masks):
            _check_mask(f"mask {index} of a turn", mask, len(self.masks[0]))
        for name in (*SCORES, "rewards", "skip_probabilities", "preferences"):
            numbers = [value for value in getattr(self, name) or () if value is not None]
            if not np.isfinite(np.array(numbers, dtype=np.float64)).all():
                raise ValueError(f"a turn has {name}={numbers}; None stands for a number that is not finite")
        if not 0 < self.examples_share <= 1:
            raise ValueError(f"examples_share={self.examples_share} is not allowed; use more than 0, up to 1")

    @property
    def cost(self) -> float:
        """Evaluations on all reward examples that the turn is worth."""
        return len(self.masks) if self.examples_share == 1.0 else len(self.masks) * self.examples_share

    def row(self, index: int) -> dict[str, Any]:
        """Mask number `index` of the turn and its scores."""
        scores = {name: getattr(self, name)[index] for name in SCORES}
        return {"mask": self.masks[index], "reward": self.rewards[index], **scores}


def check_checkpoint(
    path: Path, state: Mapping[str, Any], config: Any, names: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse what a search cannot go on from.

    Args:
        path: Where it was read.
        state: `format`, `env`, and `config`, the settings of its search.
        config: The settings of this search, a dataclass.
        names: What settings are called in errors, where it is not their field's name.

    Raises:
        ValueError: it is of another search, or of another version.
    """
    if not isinstance(state, Mapping) or state.get("format") != FORMAT or "env" not in state:
        raise ValueError(f"{path} is no checkpoint of this version; begin a new search")
    mine = json.loads(json.dumps(asdict(config)))
    if not isinstance(state.get("config"), Mapping):
        raise ValueError(f"{path} is damaged: it does not say what was searched; begin a new search")
    for name, value in state["config"].items():
        if name != "save_every" and mine.get(name) != value:
            claim = f"{path} is of a search with {names.get(name, name)}={value!r}, not {mine.get(name)!r}"
            raise ValueError(f"{claim}; use that, or another folder")


def plain_numbers(values: np.ndarray) -> list[Any]:
    """(m,) values as plain numbers; None for what JSON has no number for."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def masks_of(turns: Iterable[Turn]) -> int:
    """Evaluations that turns are worth, rounded up."""
    return math.ceil(sum(turn.cost for turn in turns))


def _statistic_masks(base: Any, names: Iterable[str] | None) -> int:
    """Masks that an environment scored for statistics by name, None = for all it shows; none where a table knows them."""
    scorer = find_scorer(base)
    if not hasattr(scorer, "masks_for"):
        return 0
    needed: int = scorer.observation_masks if names is None else scorer.masks_for(names)
    return needed


def _layers_of(base: Any) -> dict[str, Any]:
    """What a record keeps of an environment's layers."""
    scorer = find_scorer(base)
    if scorer is None or not hasattr(scorer, "architecture"):
        return {}
    values = scorer.observation().reshape(scorer.n_layers, -1).astype(float)
    statistics = {each.name: values[:, column].tolist() for column, each in enumerate(scorer.statistics)}
    return {"units": tuple(scorer.architecture().record()), "statistics": statistics}


def _check_mask(name: str, mask: Any, n_layers: int) -> None:
    if not isinstance(mask, list) or len(mask) != n_layers:
        given = f"{len(mask)} entries" if isinstance(mask, list) else repr(mask)
        raise ValueError(f"{name} is {given}, there are {n_layers} layers; give a list with one 0 or 1 a layer")
    wrong = [bit for bit in mask if type(bit) is not int or bit not in (0, 1)]
    if wrong:
        raise ValueError(f"{name} holds {wrong[0]!r}; give 0 (keep) or 1 (skip) a layer")


def best_rows(turns: Iterable[Turn], budget: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The masks that may be an answer, each once, with their scores: the best first, of equal ones the first.

    They were scored on all reward examples and keep the budget.

    Args:
        turns: Where to look.
        budget: As for `keeps_budget`.
    """
    rows = [turn.row(i) for turn in turns if turn.examples_share == 1.0 for i in range(len(turn.masks))]
    allowed = [row for row in rows if keeps_budget(budget, row["mask"], row["macs_saved"])]
    allowed.sort(key=lambda row: -math.inf if row["reward"] is None else row["reward"], reverse=True)
    distinct: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in allowed:
        distinct.setdefault(tuple(row["mask"]), row)
    return list(distinct.values())


def best_row(turns: Iterable[Turn], budget: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first of `best_rows`; None where there is none."""
    return next(iter(best_rows(turns, budget)), None)


@dataclass(frozen=True)
class SearchResult:
    """What a search found: `search.json`, complete enough to replay.

    Attributes:
        env_id: The environment; `gymnasium.make(env_id, **env_kwargs)` makes it again.
        env_kwargs: Its keyword arguments, the budget among them (`skip_num`, or a share to save with `skip_num` None), and
            where that is of another cost than MACs, what masks cost (`costs`), so that the same masks keep it anywhere.
        agent: The agent's name.
        agent_kwargs: Its hyperparameters.
        seed: Seed of agent and environment.
        masks_per_turn: Masks a turn.
        mask: The agent's answer, 0/1 a layer.
        layer_names: All layers, in mask order.
        skipped_layers: Those that the answer skips.
        n_skipped: How many.
        loss: Of the answer, nats; None where a number is not finite, here and below.
        metric: Of the answer, 0..1.
        reward: Of the answer.
        macs: Of the answer, an example.
        macs_full: Of the full model, an example.
        macs_saved: Share of MACs that the answer saves.
        evaluations: Masks that were scored before the answer, `statistic_masks` among them; those scored on a share of the
            examples count as that share, and the sum is rounded up.
        best_seen: The scored mask that keeps the budget and has the highest reward, with its scores (the answer need not
            be it); the answer itself where none was scored.
        preferences: The agent's at the end; None if it has none.
        skip_probabilities: The agent's at the end; None if it has none.
        versions: Of Python and the libraries.
        free_budget: Whether the agent was also scored on masks off the budget, see `Agent`; False in records
            of earlier versions.
        statistic_masks: Those that the model scored for layer statistics which the agent read (`leave_one_out`); 0 on a
            table, and in records of earlier versions, which do not count them.
        plugins: Modules to import before the environment can be made: what registers it.
        units: Where the layers stand, as `das_gym.drawing.architecture.Architecture.record` gives them, and
        statistics: (n_layers,) values of each layer statistic by name, for reports; empty in records of earlier versions and
            of environments that tell none.
        history: Every turn; not in `search.json` but in `search_history.json`.

    Raises:
        ValueError: what cannot be the record of a search: masks of another length or of other values than 0 and 1,
            a `best_seen` that lacks something, a seed below 0, more masks for statistics than masks.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    agent: str
    agent_kwargs: dict[str, Any]
    seed: int
    masks_per_turn: int
    mask: list[int]
    layer_names: list[str]
    skipped_layers: list[str]
    n_skipped: int
    loss: float | None
    metric: float | None
    reward: float | None
    macs: int
    macs_full: int
    macs_saved: float
    evaluations: int
    best_seen: dict[str, Any]
    preferences: list[float] | None
    skip_probabilities: list[float] | None
    versions: dict[str, str]
    free_budget: bool = False
    statistic_masks: int = 0
    plugins: tuple[str, ...] = ()
    units: tuple[dict[str, Any], ...] = ()
    statistics: dict[str, list[float]] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        lacking = [name for name in BEST_SEEN if name not in self.best_seen]
        if lacking:
            raise ValueError(f"best_seen lacks {', '.join(lacking)}; it has {', '.join(self.best_seen) or 'nothing'}")
        for name in ("reward", *SCORES):
            value = self.best_seen[name]
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(
                    f"best_seen.{name}={value!r} is not allowed; give a number, or None for one that is not finite"
                )
        numbers = {name: getattr(self, name) for name in ("reward", "macs_full", *SCORES)}
        numbers |= {f"best_seen.{name}": self.best_seen[name] for name in ("reward", *SCORES)}
        for name, value in numbers.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name}={value} is not allowed; give a number, or None for one that is not finite")
        masks = {"mask": self.mask, "best_seen.mask": self.best_seen["mask"]}
        masks |= {f"the masks of turn {i}": turn.masks[0] for i, turn in enumerate(self.history) if turn.masks}
        for name, mask in masks.items():
            _check_mask(name, mask, len(self.layer_names))
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} is not allowed; use 0..{2**32 - 1}")
        if not 0 <= self.statistic_masks <= self.evaluations:
            raise ValueError(f"statistic_masks={self.statistic_masks} is not allowed; they are some of {self.evaluations}")
        most = max((len(turn.masks) for turn in self.history), default=1)
        if self.masks_per_turn < most:
            raise ValueError(f"masks_per_turn={self.masks_per_turn} is not allowed; its turns have up to {most} masks")

    @property
    def masks_asked(self) -> int:
        """Masks that the agent asked for: what the budget of a search is of."""
        return self.evaluations - self.statistic_masks

    @classmethod
    def of(
        cls,
        config: Any,
        base: Any,
        answer: Mapping[str, Any],
        best: Mapping[str, Any],
        turns: Sequence[Turn],
        statistics_read: Iterable[str] | None,
        **rest: Any,
    ) -> SearchResult:
        """The result of a search.

        Args:
            config: Its settings, a `SearchConfig`.
            base: Its environment.
            answer: `mask`, `reward` and scores of the answer.
            best: Those of the best mask seen.
            turns: All turns.
            statistics_read: Names of the layer statistics that the agent read; None = all that are observed.
            rest: The other fields.
        """
        shared = {name: getattr(config, name) for name in ("env_id", "agent", "seed", "masks_per_turn")}
        names = list(base.layer_names)
        of_statistics = _statistic_masks(base, statistics_read)
        rest["env_kwargs"] = recorded_settings(rest["env_kwargs"])
        return cls(
            **shared,
            **answer,
            layer_names=names,
            skipped_layers=skipped_names(names, answer["mask"]),
            n_skipped=sum(answer["mask"]),
            macs_full=int(base.macs_full),
            evaluations=masks_of(turns) + of_statistics,
            statistic_masks=of_statistics,
            best_seen={**best, "skipped_layers": skipped_names(names, best["mask"])},
            versions=library_versions(),
            plugins=imported_plugins(),
            **_layers_of(base),
            history=tuple(turns),
            **rest,
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `search_history.json` and then `search.json` into `folder`; returns the path of the latter."""
        record = {name: value for name, value in vars(self).items() if name != "history"}
        turns = [vars(turn) for turn in self.history]
        write_json(Path(folder) / HISTORY, {"format": FORMAT, "layer_names": self.layer_names, "turns": turns}, indent=None)
        path = Path(folder) / RECORD
        write_json(path, {"format": FORMAT, **record})
        return path

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> SearchResult:
        """Read what `save` wrote.

        Args:
            source: The folder, or `search.json` itself; turns are read where `search_history.json` lies beside it.

        Raises:
            FileNotFoundError: there is no record of a finished search.
            ValueError: it is not one; the text says what is wrong.
        """
        path = Path(source) if Path(source).is_file() else Path(source) / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"no {RECORD} in {source}: no search ended there; search anew, or resume a stopped one")
        record, history = read_json(path), path.with_name(HISTORY)
        try:
            turns = read_json(history)["turns"] if history.is_file() else []
            if record.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return build(cls, {**record, "history": turns})
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no search record of this version ({error}); search anew") from error
