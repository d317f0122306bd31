"""The rows of a comparison of agents: each searches under one budget, and the layers that it found are removed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.card import display_name
from das_gym.adapt.choosing import search_choice
from das_gym.adapt.compare.record import FULL_MODEL, Trial
from das_gym.adapt.phases import search_first_phases
from das_gym.adapt.shrinking.checks import as_vlm, fallback_if_not_removable
from das_gym.adapt.shrinking.measuring import Quality, score_model, score_once
from das_gym.adapt.shrinking.memory import cached_values
from das_gym.adapt.shrinking.phases import measuring_phases, random_mask, recovery_phases
from das_gym.adapt.shrinking.recovery import Teacher, make_teacher, recover_student, temporarily_merged
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.settings import SCORED, TEACHER_ANSWERS, AnsweringSettings, RecoveryConfig
from das_gym.agents.comparing.comparison import depends_on_seed
from das_gym.agents.comparing.runner import Comparison, grid_cells
from das_gym.agents.searching.record import SearchResult, best_rows
from das_gym.agents.settings import SearchConfig

from das_gym.commands.progress import Phase
from das_gym.drawing.architecture import Architecture
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.names import format_count
from das_gym.problem.loading import shuffled
from das_gym.problem.problem import Problem

Search = Callable[[SearchConfig, Path, str], SearchResult]
"""Searches, or continues a search, in a folder; the last argument begins the names of what it logs."""


class RemovalRows:
    """The rows of agents that choose the layers to remove from one loaded model, with the full model first.

    Args:
        settings: Model, budget, search and recovery, with the first seed.
        problem: The loaded problem of the settings.
        agents: Names of agents.
        seeds: Each agent that draws random numbers searches once with each.
        folder: Keeps the searches, `bayes_0` with seed 0, and what a resumed comparison continues from.
        search: Runs a search.
    """

    def __init__(
        self,
        settings: AnsweringSettings,
        problem: Problem,
        agents: Sequence[str],
        seeds: Sequence[int],
        folder: Path,
        search: Search,
    ) -> None:
        self.settings = settings
        self.problem = problem
        self.architecture = Architecture.from_layers(problem.vlp.layers)
        self.folder = folder
        self.search = search
        self.full = as_vlm(problem)
        self.metric = settings.metric or problem.task.metric_name
        self.variants = (FULL_MODEL, *agents)
        self.test_examples = shuffled(problem.task, problem.splits.test, settings.test_examples)
        grid = [cell for cell in grid_cells(agents, seeds) if cell["seed"] == seeds[0] or depends_on_seed(cell["variant"])]
        self.grid = [{"variant": FULL_MODEL, "seed": seeds[0]}, *grid]
        self.count = len(self.grid)
        tested = format_count(len(self.test_examples), "test example")
        self.title = f"{_title(settings)}, {tested}, {format_count(len(seeds), 'seed')}"
        self._teachers: dict[int, Teacher | None] = {}

    def cells(self, comparison: Comparison[Trial]) -> Iterable[Mapping[str, Any]]:
        """Return the full model, then all agents with the first seed, then those that draw with the next."""
        return self.grid

    def phases(self) -> Iterator[Phase]:
        """Yield the phases of the searches, each followed by a recovery."""
        settings = self.settings
        trials = self.count - 1
        mask = random_mask(settings, self.problem)
        recovery = recovery_phases(self.problem, mask, settings.train)
        full, smaller = measuring_phases(settings, self.problem, mask, recovered=trials if recovery else 0)
        searching = replace(settings.search, evaluations=trials * settings.search.evaluations)
        yield from search_first_phases(searching, self.problem)[0]
        for phase in recovery:
            yield phase if phase.name == "teacher" else replace(phase, repeats=trials * phase.repeats)
        yield from (full, replace(smaller, repeats=trials))

    def run_trial(self, comparison: Comparison[Trial], **cell: Any) -> Trial:
        """Search with an agent, or continue its search, and measure the model without the layers that it found."""
        variant, seed = cell["variant"], cell["seed"]
        if variant == FULL_MODEL:
            return self._measure(self._full_model(seed))
        place = self.folder / f"{variant}_{seed}"
        is_new = not place.is_dir()
        start = time.perf_counter()
        self.problem.evaluator.forget()  # else an agent would find the scores of those before it
        result = self.search(replace(self.settings.search, agent=variant, seed=seed), place, f"{variant}.")
        seconds = time.perf_counter() - start if is_new else None
        trial = Trial(variant, seed, title=variant, evaluations=result.evaluations, seconds=seconds)
        try:
            mask = fallback_if_not_removable(search_choice(result, self.settings.problem), self.problem).mask
        except ValueError as error:
            return replace(trial, failure=str(error))
        bits = tuple(mask.astype(int).tolist())
        rows = [vars(result), *best_rows(result.history, result.env_kwargs)]
        seen = {"mask": bits, "reward_loss": next(row["loss"] for row in rows if tuple(row["mask"]) == bits)}
        # Agents often find the same mask, and recovery takes longest: each mask is measured once.
        known = comparison.find(mask=bits, seed=seed)
        if known is None:
            return self._measure(replace(trial, **seen))
        return replace(known, variant=variant, title=variant, evaluations=result.evaluations, seconds=seconds, **seen)

    def _full_model(self, seed: int) -> Trial:
        """Fill the caches of encoder outputs, so that the first agent does not pay for them."""
        nothing = np.zeros(len(self.full.layers), dtype=bool)
        task = self.problem.task
        count = self.settings.search.reward_examples or task.reward_examples
        self.problem.evaluator.losses(nothing[None], shuffled(task, self.problem.splits.reward, count))
        return Trial(FULL_MODEL, seed, title=FULL_MODEL, mask=(0,) * len(nothing))

    def _measure(self, trial: Trial) -> Trial:
        task = self.problem.task
        mask = np.array(trial.mask, dtype=bool)
        smaller = pruned_copy(self.full, mask)
        prompt = next(iter(task.pairs(task.open_ended(self.problem.splits.test[:1]))))
        cached, cached_of_full = (cached_values(vlm, task.processor, prompt) for vlm in (smaller, self.full))
        file = self.folder / f"{trial.variant}_{trial.seed}_{SCORED}"
        before = score_once(file, smaller, task, self.test_examples, trial.variant, self.settings.metric).quality
        config = replace(self.settings, seed=trial.seed).train
        after = self._recovered(trial, mask, config) if mask.any() and config.recover != "none" else None
        quality = after or before
        return replace(
            trial,
            drawn=draw_mask(self.full, mask),
            kv_saved=1 - cached / max(cached_of_full, 1),
            removed=None if after is None else before.score,
            removed_loss=None if after is None else before.loss,
            test=quality.score,
            test_loss=quality.loss,
            low=quality.low,
            high=quality.high,
            macs=self.problem.costs.macs(mask),
            macs_full=self.problem.costs.macs_full,
        )

    def _recovered(self, trial: Trial, mask: np.ndarray, config: RecoveryConfig) -> Quality:
        problem = self.problem
        smaller = repaired_copy(problem, mask, config)
        if trial.seed not in self._teachers:  # one at a time: it holds hidden states of every example
            kept = self.folder / f"{trial.seed}_{TEACHER_ANSWERS}"
            self._teachers = {trial.seed: make_teacher(self.full, problem.task, problem.splits.train, config, kept)}
        checkpoint = self.folder / f"{trial.variant}_{trial.seed}.pt"
        trained = recover_student(smaller, problem, config, checkpoint, self._teachers[trial.seed])
        with temporarily_merged(smaller, self.full, config, trained, self.folder):
            title = f"{trial.variant}, recovered"
            quality = score_model(smaller, problem.task, self.test_examples, title, self.settings.metric).quality
        checkpoint.unlink(missing_ok=True)
        return quality


def _title(settings: AnsweringSettings) -> str:
    """Return model, budget and recovery in words."""
    name, value = next(iter(settings.budget.items()))
    checkpoint = settings.problem.checkpoint
    model = "the bundled model" if checkpoint is None else display_name(Path(checkpoint))
    steps = "" if settings.train.method is None else f", {format_count(settings.train.num_steps, 'step')}"
    return f"{model}, {name}={value:g}, recover={settings.train.recover}{steps}"
