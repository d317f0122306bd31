"""Compare methods of choosing layers at the same budget, before and after the same recovery.

python -m adapt shrink compare                                                       the bundled model, 20 % of the MACs
python -m adapt shrink compare with recover=none                                     faster: deletion alone
python -m adapt shrink compare with checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","greedy","random"]'
python -m adapt shrink compare with units=sublayers                                  attention and MLP apart
python -m adapt shrink compare with resume=9                                         continue run 9, which was stopped

Each method searches in its own folder in this run's folder, `bayes_0/search.json` with seed 0; a resumed comparison
continues there. compare.json has every number, compare.md the table.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from das_gym.adapt.card import display_name
from das_gym.adapt.choosing import search_choice, search_first
from das_gym.adapt.phases import search_first_phases
from das_gym.adapt.shrinking.checks import as_vlm, check_config, check_loaded, fallback_if_not_removable
from das_gym.adapt.shrinking.measuring import Quality, score_model, score_once
from das_gym.adapt.shrinking.memory import cached_values
from das_gym.adapt.shrinking.phases import measuring_phases, random_mask, recovery_phases
from das_gym.adapt.shrinking.recovery import Teacher, make_teacher, recover_student, temporarily_merged
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.settings import SCORED, TEACHER_ANSWERS, CompareSettings
from das_gym.agents.comparing.comparison import depends_on_seed
from das_gym.agents.comparing.runner import Comparison, format_mean, grid_cells
from das_gym.agents.searching.record import SearchResult, best_rows

from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.drawing.report import Table
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.names import format_count
from das_gym.problem.budget import SAVED
from das_gym.problem.loading import shuffled
from das_gym.problem.problem import Problem, load_problem

FULL_MODEL = "full model"
"""The row that all others are compared with."""


@dataclass(frozen=True)
class MethodTrial:
    """The search of one method with one seed, and the model without the layers that it found.

    Attributes:
        variant: The method; `FULL_MODEL` for the model with nothing removed.
        mask: 0 or 1 per layer, 1 = removed.
        drawn: The mask, one character per layer.
        evaluations: Number of masks scored, in units of all reward examples.
        seconds: Of the search, with the layer statistics that every environment measures first. None if it was interrupted.
        reward_loss: The mask's loss on the reward split, nats.
        macs_saved, kv_saved: Share of the full model's MACs, and of its bytes of keys and values per token.
        before, after: Quality after removal alone, and after recovery.
        recovery_seconds: Of the repair and the recovery, with the score after it.
        failure: Why none of the method's masks can be removed; empty if one can.
    """

    variant: str
    seed: int
    mask: tuple[int, ...] = ()
    drawn: str = ""
    evaluations: int = 0
    seconds: float | None = None
    reward_loss: float | None = None
    macs_saved: float = 0.0
    kv_saved: float = 0.0
    before: Quality | None = None
    after: Quality | None = None
    recovery_seconds: float | None = None
    failure: str = ""


def compare(settings: CompareSettings, run: Run) -> float | None:
    """Search, measure, print and save; the test loss of the best method before recovery is the result."""
    check_config(settings.problem)
    problem = load_problem(settings.problem)
    settings = replace(settings, train=settings.train.for_model(as_vlm(problem)))
    check_loaded(settings, problem, None)
    cells = [{"variant": FULL_MODEL, "seed": settings.seed}]
    for cell in grid_cells(settings.methods, range(settings.seed, settings.seed + settings.seeds)):
        if cell["seed"] == settings.seed or depends_on_seed(cell["variant"]):
            cells.append(cell)
    if settings.estimate:
        print_estimate(phases(settings, problem, len(cells) - 1))
        return None
    comparison = Comparison(required_folder(run), MethodTrial, settings)
    trials = MethodTrials(settings, problem, run, comparison)
    done = comparison.run(cells, len(cells), trials.run_trial)
    for name in (SCORED, TEACHER_ANSWERS):
        for path in trials.folder.glob(f"*_{name}"):
            path.unlink()
    measured = [trial for trial in done if trial.before is not None and trial.variant != FULL_MODEL]
    if not measured:
        failures = "; ".join(trial.failure for trial in done[1:])
        raise ValueError(f"no method found a mask that can be removed: {failures}. Give a smaller budget.")
    comparison.finish(run, comparison_table(_title(settings, len(trials.test_examples)), done))
    losses = [trial.before.loss for trial in measured if trial.before is not None]
    for trial, loss in zip(measured, losses, strict=True):
        run.log_scalar(f"{trial.variant}.loss", loss)
    return min(losses)


def phases(settings: CompareSettings, problem: Problem, trials: int) -> list[Phase]:
    """Return the phases of `trials` searches, each followed by a recovery."""
    search = replace(settings.search, evaluations=trials * settings.evaluations)
    mask = random_mask(settings, problem)
    recovery = recovery_phases(problem, mask, settings.train)
    recoveries = [each if each.name == "teacher" else replace(each, repeats=trials * each.repeats) for each in recovery]
    full, smaller = measuring_phases(settings, problem, mask, recovered=trials if recovery else 0)
    return [*search_first_phases(search, problem)[0], *recoveries, full, replace(smaller, repeats=trials)]


class MethodTrials:
    """Runs the trials of a comparison on one loaded model."""

    def __init__(self, settings: CompareSettings, problem: Problem, run: Run, comparison: Comparison[MethodTrial]) -> None:
        self.settings = settings
        self.problem = problem
        self.run = run
        self.comparison = comparison
        self.folder = required_folder(run)
        self.full = as_vlm(problem)
        self.test_examples = shuffled(problem.task, problem.splits.test, settings.test_examples)
        self._teachers: dict[int, Teacher | None] = {}

    def run_trial(self, variant: str, seed: int) -> MethodTrial:
        """Search with a method, or continue its search, and measure the model without the layers that it found."""
        if variant == FULL_MODEL:
            nothing = np.zeros(len(self.full.layers), dtype=bool)
            # Encoder outputs are computed here, so that the first method does not pay for them.
            task = self.problem.task
            count = self.settings.search.reward_examples or task.reward_examples
            self.problem.evaluator.losses(nothing[None], shuffled(task, self.problem.splits.reward, count))
            quality = score_model(self.full, self.problem.task, self.test_examples, FULL_MODEL, self.settings.metric).quality
            return MethodTrial(variant, seed, tuple(nothing.astype(int).tolist()), before=quality)
        place = self.folder / f"{variant}_{seed}"
        is_new = not place.is_dir()
        start = time.perf_counter()
        result = self._search(variant, seed, place)
        seconds = time.perf_counter() - start if is_new else None
        trial = MethodTrial(variant, seed, evaluations=result.evaluations, seconds=seconds)
        try:
            mask = fallback_if_not_removable(search_choice(result, self.settings.problem), self.problem).mask
        except ValueError as error:
            return replace(trial, failure=str(error))
        bits = tuple(mask.astype(int).tolist())
        trial = replace(trial, mask=bits, reward_loss=_reward_loss(result, bits))
        # Methods often find the same mask, and recovery takes longest: each mask is measured once.
        known = self.comparison.find(mask=bits, seed=seed)
        if known is None:
            return self._measure(trial, mask)
        found = replace(known, variant=variant, evaluations=trial.evaluations, seconds=seconds)
        return replace(found, reward_loss=trial.reward_loss)

    def _search(self, method: str, seed: int, place: Path) -> SearchResult:
        self.problem.evaluator.forget()  # else a method would find the scores of those before it
        search = replace(self.settings.search, agent=method, seed=seed)
        return search_first(search, self.run, place, self.problem, f"{method}.")

    def _measure(self, trial: MethodTrial, mask: np.ndarray) -> MethodTrial:
        problem = self.problem
        settings = self.settings
        full = self.full
        config = replace(settings, seed=trial.seed).train
        file = self.folder / f"{trial.variant}_{trial.seed}_{SCORED}"
        smaller = pruned_copy(full, mask)
        prompt = next(iter(problem.task.pairs(problem.task.open_ended(problem.splits.test[:1]))))
        cached, cached_of_full = (cached_values(vlm, problem.task.processor, prompt) for vlm in (smaller, full))
        trial = replace(
            trial,
            drawn=draw_mask(full, mask),
            macs_saved=float(problem.costs.macs_saved(mask)),
            kv_saved=1 - cached / max(cached_of_full, 1),
            before=score_once(file, smaller, problem.task, self.test_examples, trial.variant, settings.metric).quality,
        )
        if config.recover == "none":
            return trial
        started = time.perf_counter()
        smaller = repaired_copy(problem, mask, config)
        if trial.seed not in self._teachers:  # one at a time: it holds hidden states of every example
            kept = self.folder / f"{trial.seed}_{TEACHER_ANSWERS}"
            self._teachers = {trial.seed: make_teacher(full, problem.task, problem.splits.train, config, kept)}
        checkpoint = self.folder / f"{trial.variant}_{trial.seed}.pt"
        teacher = self._teachers[trial.seed]
        trained = recover_student(smaller, problem, config, checkpoint, teacher)
        with temporarily_merged(smaller, full, config, trained, self.folder):
            title = f"{trial.variant}, recovered"
            after = score_model(smaller, problem.task, self.test_examples, title, settings.metric).quality
        checkpoint.unlink(missing_ok=True)
        return replace(trial, after=after, recovery_seconds=time.perf_counter() - started)


def _reward_loss(result: SearchResult, bits: tuple[int, ...]) -> float | None:
    rows = [vars(result), *best_rows(result.history, result.env_kwargs)]
    return next(row["loss"] for row in rows if tuple(row["mask"]) == bits)


def _title(settings: CompareSettings, count: int) -> str:
    name, value = next(iter(settings.budget.items()))
    unit = "sublayer" if settings.problem.units == "sublayers" else "layer"
    budget = f"{format_count(value, unit)} removed"
    if name != "skip_num":
        budget = f"at least {100 * value:g} % of the {SAVED[name]} saved"
    model = "the bundled model" if settings.problem.checkpoint is None else display_name(Path(settings.problem.checkpoint))
    recovery = "no recovery" if settings.train.recover == "none" else settings.train.recover
    if settings.train.method is not None:
        recovery += f", {format_count(settings.train.num_steps, 'step')}"
    seeds = f"seed {settings.seed}" if settings.seeds == 1 else format_count(settings.seeds, "seed")
    return f"{model}, {budget}, {recovery}, {count:,} test examples, {seeds}"


def comparison_table(title: str, trials: Sequence[MethodTrial]) -> Table:
    """Return the table: the full model first, then methods by test loss before recovery, means over seeds."""
    measured = [trial for trial in trials if trial.before is not None]
    rows = []
    for variant in dict.fromkeys(trial.variant for trial in measured):
        own = [trial for trial in measured if trial.variant == variant]
        before = [trial.before for trial in own if trial.before is not None]
        after = [trial.after for trial in own if trial.after is not None]
        cells = {
            "method": variant,
            "masks scored": format_mean([trial.evaluations for trial in own], digits=0),
            "seconds": format_mean([trial.seconds for trial in own if trial.seconds is not None]),
            "MACs saved": f"{100 * np.mean([trial.macs_saved for trial in own]):.1f} %",
            "KV saved": f"{100 * np.mean([trial.kv_saved for trial in own]):.1f} %",
            "loss seen": format_mean([trial.reward_loss for trial in own if trial.reward_loss is not None], digits=4),
            **_quality_cells(before, ""),
            **(_quality_cells(after, "recovered ") if any(trial.after is not None for trial in trials) else {}),
            "layers": own[0].drawn,
        }
        loss = float(np.mean([quality.loss for quality in before]))
        rows.append((variant != FULL_MODEL, loss, cells))
    ordered = [cells for *_, cells in sorted(rows, key=lambda row: row[:2])]
    notes = [f"{trial.variant} has no result: {trial.failure}" for trial in trials if trial.failure]
    columns = tuple(ordered[0])
    return Table(columns, tuple(tuple(row.values()) for row in ordered), title, tuple(notes), text_columns=(0, -1))


def _quality_cells(found: Sequence[Quality], when: str) -> dict[str, str]:
    """Return mean loss and score in %; the interval is over the test examples of one seed, or over several seeds."""
    score = format_mean([quality.score for quality in found], scale=100)
    if len(found) == 1:
        score += f" ({100 * found[0].low:.1f}..{100 * found[0].high:.1f})"
    loss = format_mean([quality.loss for quality in found], digits=4)
    return {f"{when}loss": loss, f"{when}score (95 %)": score}
