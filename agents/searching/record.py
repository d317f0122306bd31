"""The record of a search: its turns, its result in `search.json`, complete enough to replay, and its checkpoint."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from das_gym.agents.searching.scorer import SCORES, open_scorer
from das_gym.agents.settings import SearchConfig

from das_gym.commands.progress import progress
from das_gym.commands.runs import library_versions
from das_gym.commands.settings import build, settings_dict
from das_gym.commands.trust import imported_plugins
from das_gym.drawing.architecture import Unit
from das_gym.engine.scores import Scores
from das_gym.envs.scoring import Scorer
from das_gym.files import INPUTS, claim_folder, explain_damage, read_json, write_json
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED, Masks, given_costs, satisfies_budget
from das_gym.problem.config import recorded_settings
from das_gym.problem.mask_space import skipped_names
from das_gym.problem.problem import Problem
from das_gym.summaries import Summary

FORMAT = 1
RECORD = "search.json"
FRONT = "front.json"  # of `python -m agents pareto`
HISTORY = "search_history.json"
CHECKPOINT = "checkpoint.json"

Row = dict[str, Any]
"""A mask with its reward and scores, see `Turn.rows`."""


@dataclass(frozen=True)
class Turn:
    """One turn of a search: masks, 0/1 per layer, with their scores; None where a number is not finite.

    Attributes:
        skip_probabilities: The agent's after the turn; None if it has none.
        shares: Share (0..1] of the reward examples that each mask was scored on. The loss of a mask that a race has dropped
            is the incumbent's plus the mean difference on that share, see `das_gym.agents.searching.racing`.
    """

    masks: list[list[int]]
    rewards: list[float | None]
    loss: list[float | None]
    metric: list[float | None]
    macs: list[int]
    macs_saved: list[float]
    shares: list[float]
    skip_probabilities: list[float] | None = None

    @classmethod
    def from_scores(
        cls,
        masks: np.ndarray,
        rewards: np.ndarray,
        scores: Mapping[str, np.ndarray],
        shares: np.ndarray | float = 1.0,
        skip_probabilities: np.ndarray | None = None,
    ) -> Self:
        """Return a turn from (m, n_layers) masks, their (m,) rewards and `SCORES`, and the share of each or of all."""
        columns: dict[str, Any] = {name: plain_numbers(scores[name]) for name in SCORES}
        columns["shares"] = np.broadcast_to(shares, len(masks)).tolist()
        columns["skip_probabilities"] = None if skip_probabilities is None else skip_probabilities.tolist()
        return cls(masks.astype(int).tolist(), plain_numbers(rewards), **columns)

    def __post_init__(self) -> None:
        for name in ("rewards", *SCORES, "shares"):
            if len(getattr(self, name)) != len(self.masks):
                raise ValueError(f"a turn has {len(self.masks)} masks, but {len(getattr(self, name))} values of `{name}`")
        _check_masks(self.masks, len(self.masks[0]) if self.masks else 0)

    @property
    def cost(self) -> float:
        """Evaluations on all reward examples that the turn is worth."""
        return math.fsum(self.shares)

    @property
    def rows(self) -> list[Row]:
        """Each mask with its reward and scores."""
        columns = (self.masks, self.rewards, *(getattr(self, name) for name in SCORES))
        return [dict(zip(("mask", "reward", *SCORES), row, strict=True)) for row in zip(*columns, strict=True)]

    @property
    def complete_rows(self) -> list[Row]:
        """`rows` of the masks that were scored on all reward examples."""
        return [row for row, share in zip(self.rows, self.shares, strict=True) if share == 1.0]

    def known_scores(self) -> Scores:
        """Return the losses and metrics as the engine returns them: inf where a loss is not finite."""
        losses = [math.inf if loss is None else loss for loss in self.loss]
        return Scores(np.array(losses), np.array(self.metric, dtype=np.float64))


OnTurn = Callable[[Turn], Any]


def _check_masks(masks: Sequence[Sequence[int]], n_layers: int) -> None:
    for mask in masks:
        if len(mask) != n_layers or not set(mask) <= {0, 1}:
            raise ValueError(
                f"`mask` is not allowed: got {mask}, expected 0 (keep) or 1 (skip) for each of {n_layers} layers"
            )


def plain_numbers(values: np.ndarray) -> list[Any]:
    """Return (m,) values as plain numbers; None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def spent(turns: Iterable[Turn]) -> float:
    """Return the evaluations on all reward examples that turns are worth, rounded, so that eight eighths are one."""
    return round(math.fsum(turn.cost for turn in turns), 9)


def best_rows(turns: Iterable[Turn], budget: Mapping[str, Any]) -> list[Row]:
    """Return the masks that may be an answer, each once, the best first: scored on all examples and within the budget."""
    rows = [row for turn in turns for row in turn.complete_rows]
    allowed = [row for row in rows if satisfies_budget(budget, row["mask"], row["macs_saved"])]
    distinct: dict[tuple[int, ...], Row] = {}
    # The sort is stable: of masks with the same reward, the one that was scored first is the answer.
    for row in sorted(allowed, key=finite_reward, reverse=True):
        distinct.setdefault(tuple(row["mask"]), row)
    return list(distinct.values())


def finite_reward(row: Row) -> float:
    """Return the reward in a row, -inf if it is not finite."""
    return -math.inf if row["reward"] is None else float(row["reward"])


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult(Summary):
    """The result of a search: `search.json`, complete enough to replay.

    Attributes:
        env_id: The environment; `gymnasium.make(env_id, **env_kwargs)` makes it again. That of a model in memory,
            `DAS-v0`, needs `problem=` too.
        env_kwargs: Its keyword arguments, the budget among them (`skip_num`, or a share to save). If that is of another cost
            than MACs, `costs` holds the measured costs, so that the same masks satisfy it on any machine.
        mask: The answer, (n_layers,) bool, True = skipped: the better of the agent's answer and the best mask that it asked
            for.
        loss, metric, reward: Scores of `mask`: in nats, 0..1, and in the reward's unit; None if not finite.
        macs, macs_full, macs_saved: MACs per example under `mask`, of the model without adapters, and the share saved.
        evaluations: Masks that were scored, `statistic_masks` and `answer_masks` among them. Masks scored on a fraction of
            the examples count as that fraction, and the sum is rounded up.
        statistic_masks: Masks that the model scored for layer statistics that the agent read (`leave_one_out`).
        answer_masks: 1 if the agent's answer was scored in addition, since the agent had not asked for it.
        plugins: Modules that register the environment or the agent.
        units, statistics: Layout and statistics of the layers, for reports.
        table_settings: Settings of the problem that a table was made for; commands that use the mask start from them.
        fingerprint: That of the searched model or of the table's, to compare with the model that the mask is used on; empty
            if unknown.
        history: Every turn; stored in `search_history.json`.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    agent: str
    agent_kwargs: dict[str, Any]
    seed: int
    masks_per_turn: int
    mask: np.ndarray
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
    versions: dict[str, str]
    statistic_masks: int = 0
    answer_masks: int = 0
    plugins: tuple[str, ...] = ()
    units: tuple[Unit, ...] = ()
    statistics: dict[str, list[float]] = field(default_factory=dict)
    table_settings: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        masks = [list(self.mask), *(mask for turn in self.history for mask in turn.masks)]
        _check_masks(masks, len(self.layer_names))
        object.__setattr__(self, "mask", np.array(self.mask, dtype=bool))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchResult) and self.record() == other.record()

    __hash__ = None  # type: ignore[assignment]

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values, the mask as 0 and 1."""
        return {**asdict(self), "mask": self.mask.astype(int).tolist()}

    def facts(self) -> dict[str, str]:
        """Return what was found, by name."""
        budget = {name: self.env_kwargs.get(name) for name in BUDGET_SETTINGS}
        facts = {
            "agent": self.agent,
            "environment": self.env_id,
            "budget": ", ".join(f"{name}={value}" for name, value in budget.items() if value is not None) or "none",
            "skips": ", ".join(self.skipped_layers) or "nothing",
            "reward": "not finite" if self.reward is None else f"{self.reward:.4f}",
            "loss, nats": "not finite" if self.loss is None else f"{self.loss:.4f}",
            "metric, %": "not finite" if self.metric is None else f"{100 * self.metric:.2f}",
            "MACs saved, %": f"{100 * self.macs_saved:.1f}",
            "masks scored": f"{self.evaluations:,}",
        }
        for setting, cost in given_costs(self.env_kwargs.get("costs")).items():
            facts[f"{SAVED[setting]} saved, %"] = f"{100 * cost.saved(self.mask[None])[0]:.1f}"
        return facts

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each scored mask.

        Its columns are `turn`, `reward`, `loss`, `metric`, `macs`, `macs_saved`, `share` (of the reward examples that the
        mask was scored on), and a bool column for each layer, True = skipped.
        """
        import pandas as pd

        rows = []
        for number, turn in enumerate(self.history):
            for row, share in zip(turn.rows, turn.shares, strict=True):
                skips = dict(zip(self.layer_names, map(bool, row["mask"]), strict=True))
                scores = {name: value for name, value in row.items() if name != "mask"}
                rows.append({"turn": number, **scores, "share": share, **skips})
        return pd.DataFrame(rows)

    @property
    def masks_asked(self) -> int:
        """Number of masks that the agent asked for, which `SearchConfig.evaluations` limits."""
        return self.evaluations - self.statistic_masks - self.answer_masks

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `search_history.json` and then `search.json` into `folder`; return the path of the latter."""
        record = self.record()
        turns = record.pop("history")
        # The history first: a folder with `search.json` holds a complete search.
        write_json(Path(folder) / HISTORY, {"format": FORMAT, "layer_names": self.layer_names, "turns": turns}, indent=None)
        path = Path(folder) / RECORD
        write_json(path, {"format": FORMAT, **record})
        return path

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Self:
        """Read `search.json` and its history from a folder or path; FileNotFoundError or ValueError if it cannot be read."""
        path = Path(source) if Path(source).is_file() else Path(source) / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"no {RECORD} in {source}: no search ended there. Search again, or resume a stopped one")
        record = read_json(path)
        history = path.with_name(HISTORY)
        with explain_damage(path, "search again"):
            turns = read_json(history)["turns"] if history.is_file() else []  # the record alone is enough to use the mask
            if record.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            if "table_model" in record:  # its name in 0.2.0
                record["fingerprint"] = record.pop("table_model")
            return build(cls, {**record, "mask": np.array(record["mask"]), "history": turns})


def conclude(
    config: SearchConfig,
    scorer: Scorer,
    mask: Masks,
    turns: Sequence[Turn],
    agent_kwargs: dict[str, Any],
    statistics_read: Iterable[str] | None,
) -> tuple[SearchResult, Row]:
    """Score an agent's answer and the best mask that it asked for, and make the record of the search.

    Both masks are scored together, on the examples of the next step. `mask` is the agent's answer, (n_layers,) bool.
    `statistics_read` are the layer statistics that the agent read; None for all that are observed. The second value returned
    is the row of the agent's own answer.
    """
    own = mask.astype(int).tolist()
    best = [row["mask"] for row in best_rows(turns, config.mask_kwargs)[:1]]
    masks = np.array([own] if best == [own] else [own, *best], dtype=bool)
    # Not part of the budget. It is the next step of the environment, so that a replay scores it on the same examples.
    rows = Turn.from_scores(masks, *scorer.score(masks)).rows
    found = max(rows, key=finite_reward)
    asked = [row["mask"] for turn in turns for row in turn.complete_rows]
    answer_masks = 0 if own in asked else 1
    statistic_masks = scorer.observation_masks
    if statistics_read is not None:
        statistic_masks = scorer.count_statistic_masks(statistics_read)
    names = list(scorer.layer_names)
    result = SearchResult(
        **{name: getattr(config, name) for name in ("env_id", "agent", "seed", "masks_per_turn")},
        **found,
        **scorer.layout(),
        env_kwargs=recorded_settings(config.mask_kwargs),
        agent_kwargs=agent_kwargs,
        layer_names=names,
        skipped_layers=skipped_names(names, found["mask"]),
        n_skipped=sum(found["mask"]),
        macs_full=scorer.macs_full,
        evaluations=math.ceil(spent(turns)) + statistic_masks + answer_masks,
        statistic_masks=statistic_masks,
        answer_masks=answer_masks,
        versions=library_versions(),
        plugins=imported_plugins(),
        history=tuple(turns),
    )
    return result, rows[0]


class SearchProgress:
    """Shows the turns of a search as a bar with the best reward so far, and passes each on to a callback."""

    def __init__(self, config: SearchConfig, callback: OnTurn | None) -> None:
        self.callback = callback
        self.budget = config.mask_kwargs
        self.bar = progress(config.evaluations, "searching", unit="mask")
        self.evaluations = 0.0
        self.best = -math.inf  # of masks that may be an answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, turn: Turn) -> None:
        """Show a turn."""
        self.best = max([self.best, *(finite_reward(row) for row in best_rows([turn], self.budget))])
        if self.best > -math.inf:
            self.bar.set_postfix_str(f"best reward {self.best:.4f}", refresh=False)
        self.evaluations += turn.cost
        self.bar.update(int(self.evaluations) - self.bar.n)  # a mask that was scored on few examples costs less than one
        if self.callback is not None:
            self.callback(turn)


def bind_folder(folder: Path, config: SearchConfig, scorer: Scorer) -> SearchResult | None:
    """Make a folder that of one search; return its result if it has ended there, and None before.

    Args:
        folder: The folder of the search.
        config: The search, with measured costs, see `with_costs`.
        scorer: Scores its masks.

    Raises:
        ValueError: The folder belongs to another search: of another model, on other data, or with other settings.
    """
    settings = settings_dict(config)
    # Not those of the command that runs it, nor what changes no result.
    inputs = {each.name: settings[each.name] for each in fields(SearchConfig) if each.name != "save_every"}
    claim_folder(folder, "search", {"fingerprint": scorer.fingerprint, "data": scorer.data_hash(), **inputs})
    return SearchResult.load(folder) if (folder / RECORD).is_file() else None


@dataclass(frozen=True)
class Checkpoint:
    """The state of a search after a turn, in `checkpoint.json`: of ask/tell agents and of Stable-Baselines3 alike."""

    scorer: Any
    """The scorer's `get_state()`, which determines the next examples; None if it has none."""
    race: dict[str, Any]
    """`Race.state_dict()`; empty without racing."""
    turns: tuple[Turn, ...]

    def save(self, folder: Path) -> None:
        """Write it into a run folder."""
        state = {"scorer": self.scorer, "race": self.race, "turns": [vars(turn) for turn in self.turns]}
        write_json(folder / CHECKPOINT, {"format": FORMAT, **state}, indent=None)

    @classmethod
    def load(cls, folder: Path, n_layers: int) -> Self | None:
        """Read the checkpoint in a folder that `bind_folder` has checked; None if there is none yet."""
        path = folder / CHECKPOINT
        if not path.is_file():
            return None
        record = read_json(path)
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of this version. Start a new search")
        with explain_damage(path, "start a new search"):
            checkpoint = build(cls, {name: record[name] for name in ("scorer", "race", "turns")})
            if any(len(mask) != n_layers for turn in checkpoint.turns for mask in turn.masks):
                raise ValueError(f"its masks do not have {n_layers} layers")
        return checkpoint


def with_costs(config: SearchConfig, folder: Path | None = None, problem: Problem | None = None) -> SearchConfig:
    """Return the search with measured costs in its `env_kwargs`, if its budget is of another cost than MACs.

    Latency is measured only once, so that the same masks satisfy the budget until the end of the search, and wherever its
    record is replayed: a search that continues in `folder` has the costs measured then. `problem` is the
    loaded problem of the environment, if there is one.
    """
    names = [name for name in config.budget if name in SAVED and name != "macs_saved"]
    if not names:
        return config
    costs: Any = None
    if folder is not None and (folder / INPUTS).is_file():
        costs = read_json(folder / INPUTS)
        for name in ("search", "env_kwargs", "costs"):
            costs = costs.get(name) if isinstance(costs, Mapping) else None
    if not isinstance(costs, Mapping):
        with closing(open_scorer(config.env_id, config.mask_kwargs, problem=problem)) as scorer:
            costs = {name: scorer.cost_of(name).as_dict() for name in names}
    return replace(config, env_kwargs={**config.env_kwargs, "costs": costs})
