"""Search the whole front once: for every budget the mask of least loss.

    python -m agents pareto with vlm_answering                      400 masks of the bundled model, MACs against loss
    python -m agents pareto with vilt_nlvr2_table evaluations=200   on a table, which knows how much of the front is found
    python -m agents pareto with vlm_answering checkpoint=DIR data_root=DIR dtype=float32
    python -m agents pareto with resume=3                           continue run 3, which was stopped

A run is kept in runs/<id>/: front.json holds the points of the front and every mask that was scored, front.png draws them.
`python -m adapt with search_run=<id> point=3` and `python -m adapt shrink with search_run=<id> point=3` use a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.compare.plots import plot_front
from das_gym.agents.estimate import search_parts
from das_gym.agents.pareto.record import RECORD, FrontResult, ScoredMasks
from das_gym.agents.pareto.searcher import DRAWN, FrontSearch
from das_gym.agents.search_experiment import EnvSettings, problem_configs
from das_gym.agents.searching.agent_setup import agent_generator, make_search_agent
from das_gym.agents.searching.environment import make_scored, observed_statistics

from das_gym.commandline import format_command
from das_gym.config import check_names, choice, settings_dict
from das_gym.drawing.table import Table
from das_gym.experiment import RecordedCommand, Run, run_folder
from das_gym.files import explain_damage, read_json, write_json
from das_gym.output import counted
from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.config import recorded_settings
from das_gym.problem.estimate import print_estimate
from das_gym.problem.front import hypervolume, reference_point
from das_gym.problem.mask_cost import SAVED
from das_gym.problem.mask_space import MaskSpace
from das_gym.progress import progress
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS, MODELS, entry_of
from das_gym.runs import EstimatedSettings, ResumableSettings, runs_dir_words

FIGURE = "front.png"
CHECKPOINT = "front_checkpoint.json"
BASELINES = ("block_influence", "angular", "interlace", "uniform")
"""Agents without a search, each scored at ten budgets, to compare with the front."""


class FrontProblem:
    """An environment of das_gym without a budget, and a cost to save.

    Attributes:
        layer_names: Names in mask order.
        cost: The cost of masks.
        max_saved: The largest fraction that any mask saves.
        table: The table behind the environment, or None.
        reads: What the model reads: `pairs` or `prompts`.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any], cost: str = "MACs") -> None:
        check_names([cost], SAVED.values(), "cost")
        batches = env_kwargs.get("reward_batches", "fixed")
        if batches != "fixed":
            raise ValueError(f"`reward_batches` has to be 'fixed' for a front: got {batches!r}")
        self._env = make_scored(env_id, {"skip_num": None}, env_kwargs)
        self.scorer = self._env.scorer
        self.table = getattr(self.scorer, "table", None)
        self.layer_names: tuple[str, ...] = tuple(self._env.layer_names)
        self.n_layers = len(self.layer_names)
        self.cost = self.scorer.cost_of(next(setting for setting, word in SAVED.items() if word == cost))
        self.max_saved = float(self.cost.range[1])
        entry = entry_of(self._env.spec.id)
        assert entry is not None  # `make_scored` rejects other environments
        self.reads = MODELS[entry.model].reads
        if self.max_saved <= 0:
            raise ValueError(f"no mask of this model saves {cost}: adapters cost more than layers. Give another `cost`")
        self._rng = np.random.default_rng(0)

    @cached_property
    def statistics(self) -> dict[str, Floats]:
        """Statistic name to (n_layers,) values, measured on first use."""
        return observed_statistics(self._env, self._env.reset()[0])

    @property
    def metric_name(self) -> str:
        """Name of `ScoredMasks.metrics`."""
        return self.scorer.problem.task.metric_name if self.table is None else self.table.meta.metric_name

    def score(self, masks: Masks) -> ScoredMasks:
        """Score (m, n_layers) masks in one call of the engine."""
        info = self.scorer.score(masks, self._rng)[1]
        return ScoredMasks(masks, self.cost.saved(masks), info["loss"].astype(np.float64), info["metric"].astype(np.float64))

    def hypervolume_share(self, scored: ScoredMasks) -> float | None:
        """Return the fraction of the true front's hypervolume that the masks cover; None without a table."""
        if self.table is None:
            return None
        masks, losses = self.table.masks, self.table.values("loss", self.scorer.split)
        saved = self.cost.saved(masks)
        reference = reference_point(saved, losses)
        return hypervolume(scored.saved, scored.losses, reference) / hypervolume(saved, losses, reference)


@dataclass(frozen=True)
class ParetoSettings(EstimatedSettings, ResumableSettings, EnvSettings):
    """The settings of `python -m agents pareto`.

    Attributes:
        env_id: Id of the environment to search; `DAS-METER-VQA-Tabular-v0` and the like read a table. Its budget is ignored.
        cost: Cost that is traded off against the loss. Latency is measured on this machine.
        evaluations: Number of masks to score, at least 12. Agents without a search, such as `block_influence`, are scored at
            ten budgets each in addition, to compare with the front.
        seed: Random seed of the search, 0..2^32 - 1.
        masks_per_turn: Masks that are scored in one call, at least 1.
    """

    group: ClassVar[str] = "Search"

    env_id: str = choice(DEFAULT_ENV, ENVIRONMENTS)
    cost: str = choice("MACs", tuple(SAVED.values()))
    evaluations: int = 400
    seed: int = 0
    masks_per_turn: int = 8

    def __post_init__(self) -> None:
        check_names([self.cost], SAVED.values(), "cost")
        for name, least in (("seed", 0), ("evaluations", DRAWN), ("masks_per_turn", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is out of range: got {getattr(self, name)}, expected at least {least}")

    def front_problem(self) -> FrontProblem:
        """Load model and data, and return the problem."""
        return FrontProblem(self.env_id, self.all_env_kwargs, self.cost)


def check(settings: ParetoSettings) -> ParetoSettings:
    """Create the environment, which raises for invalid settings before a run starts."""
    scorer, count = settings.front_problem().scorer, settings.evaluations + 10 * len(BASELINES)
    print_estimate(settings, lambda: search_parts(scorer, count, settings.masks_per_turn))
    return settings


def search_front(settings: ParetoSettings, run: Run) -> float | None:
    """Search, draw, print and save; the hypervolume of the front is the result."""
    problem, folder = settings.front_problem(), run_folder(run)
    searched = search(problem, settings, None if folder is None else folder / CHECKPOINT)
    env_settings = EnvSettings.__dataclass_fields__
    result = FrontResult(
        settings={name: value for name, value in settings_dict(settings).items() if name not in env_settings},
        env_id=settings.env_id,
        env_kwargs=recorded_settings(settings.all_env_kwargs),
        cost=settings.cost,
        layer_names=problem.layer_names,
        searched=searched,
        baselines={name: baseline(problem, settings, name) for name in BASELINES},
        hypervolume_share=problem.hypervolume_share(searched),
        keeps_a_layer=problem.reads == "prompts",  # their skipped layers have no adapters
    )
    record = result.record()
    print_front(result, problem.metric_name)
    if folder is not None:
        write_json(folder / RECORD, record)
        plot_front(folder / FIGURE, result, f"{settings.env_id}, {counted(len(searched.masks), 'mask')} scored")
        for name in (RECORD, FIGURE):
            run.add_artifact(folder / name)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        print(f"record: {folder / RECORD}\nfigure: {folder / FIGURE}")
        then = "adapt" if problem.reads == "pairs" else "adapt shrink"
        print(f"Next: {format_command(then, f'search_run={folder.name}', 'point=...', runs_dir_words(folder))}")
    return float(record["hypervolume"])


def search(problem: FrontProblem, settings: ParetoSettings, checkpoint: Path | None = None) -> ScoredMasks:
    """Search the front, and return the scored masks in order; a checkpoint is written, and continued if it exists."""
    searcher = FrontSearch(problem.n_layers, problem.cost.saved, agent_generator(settings.seed))
    parts: list[ScoredMasks] = []
    if checkpoint is not None and checkpoint.is_file():
        known = read_json(checkpoint)
        with explain_damage(checkpoint, "start a new search"):
            parts = [ScoredMasks.from_record(known["scored"])]
            if parts[0].masks.shape != (len(parts[0].losses), searcher.n_layers):
                raise ValueError(f"masks of shape {parts[0].masks.shape}")
            searcher.tell(parts[0].masks, parts[0].losses)
            searcher.load_state_dict(known["searcher"])
    with progress(settings.evaluations, "searching the front", unit="mask", initial=len(searcher.scored)) as bar:
        while (left := settings.evaluations - len(searcher.scored)) > 0:
            masks = searcher.ask(min(left, settings.masks_per_turn))
            if len(masks) == 0:
                break
            parts.append(problem.score(masks))
            searcher.tell(masks, parts[-1].losses)
            bar.update(len(masks))
            if checkpoint is not None:
                kept = {"scored": ScoredMasks.joined(parts).record(), "searcher": searcher.state_dict()}
                write_json(checkpoint, kept, indent=None)
    return ScoredMasks.joined(parts)


def baseline(problem: FrontProblem, settings: ParetoSettings, agent: str) -> ScoredMasks:
    """Score the masks of a heuristic at ten budgets, spread evenly up to 90 % of the largest saving; each mask once."""
    found, env = {}, (settings.env_id, settings.all_env_kwargs)
    for share in np.linspace(0.0, 0.9 * problem.max_saved, 11)[1:]:  # near the largest saving only one mask is left
        space = MaskSpace(Budget(problem.n_layers, saved=float(share), cost=problem.cost))
        mask = make_search_agent(agent, space, settings.seed, {}, problem.statistics, *env).best()
        found[mask.tobytes()] = mask
    return problem.score(np.array(list(found.values()), dtype=bool))


def mask_diagram(mask: Sequence[bool] | np.ndarray, layer_names: Sequence[str]) -> str:
    """Return a drawing of a mask, kind by kind, with □ for skipped layers: `■■□■ ■□□■`."""
    kinds = [name.rpartition(".")[0] for name in layer_names]
    texts = dict.fromkeys(kinds, "") if len(set(kinds)) <= 2 else {"": ""}
    for kind, skipped in zip(kinds, mask, strict=True):
        texts[kind if kind in texts else ""] += "□" if skipped else "■"
    return " ".join(texts.values())


def print_front(result: FrontResult, metric: str) -> None:
    """Print the points as a table, and how many masks were scored."""
    front, rows = result.front, []
    for number, mask in enumerate(front.masks):
        numbers = f"{100 * front.saved[number]:.1f} %", f"{front.losses[number]:.4f}", f"{100 * front.metrics[number]:.1f} %"
        rows.append((str(number), *numbers, str(int(mask.sum())), mask_diagram(mask, result.layer_names)))
    columns = ("point", f"{result.cost} saved", "loss", metric.replace("_", " "), "skipped", "layers, □ = skipped")
    by_rules = sum(len(scored.masks) for scored in result.baselines.values())
    searched = counted(len(result.searched.masks), "mask")
    notes = [f"Scored: {searched} by the search, and {by_rules} of {', '.join(result.baselines)}."]
    if result.hypervolume_share is not None:
        share = f"{100 * result.hypervolume_share:.2f} %"
        notes.append(f"The search found {share} of the true front's hypervolume (by the table).")
    title = f"{result.env_id}: the front, seed {result.settings['seed']}"
    Table(columns, tuple(rows), title, tuple(notes), (-1,)).print()


ex = RecordedCommand("agents pareto", ParetoSettings, search_front, problem_configs, prepare=check)
"""`python -m agents pareto`."""
