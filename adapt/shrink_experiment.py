"""From a folder of weights to a smaller folder that transformers loads by itself, with the loss told.

python -m adapt shrink with checkpoint=DIR data_root=DIR macs_saved=0.2 out=NEW     search, delete, recover, save, check
python -m adapt shrink with checkpoint=DIR data_root=DIR skip_num=3 recover=none    3 layers deleted, nothing trained
python -m adapt shrink with checkpoint=DIR data_root=DIR latency_saved=0.2          or memory_saved, parameters_saved
python -m adapt shrink with search_run=3 out=NEW                                    the mask, model and data of that search
python -m adapt shrink with search_run=3 refine=8                                   short recoveries choose among its best
python -m adapt shrink with front=5 point=3 out=NEW                                 a point of the front of `agents pareto`
python -m adapt shrink with checkpoint=DIR data_root=DIR 'mask=[0,1,0,0]'           a mask of one's own
python -m adapt shrink compare with checkpoint=DIR data_root=DIR macs_saved=0.2     methods side by side, nothing saved
python -m adapt shrink with resume=4                                                go on with run 4, which was stopped
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.adapt_experiment import (
    Choice,
    SearchFirst,
    SearchingExperiment,
    check_chosen,
    check_refine,
    check_test_images,
    fronted,
    searched,
    told_to_any_search,
)
from das_gym.adapt.memory import free_bytes
from das_gym.adapt.refining import Round, candidates, taken
from das_gym.adapt.run_report import SearchReport, run_report
from das_gym.adapt.shrink.card import Card
from das_gym.adapt.shrink.cutting import check_shared, check_units, cut, drawn
from das_gym.adapt.shrink.das_adapters import check_places, has_adapters, masked_with
from das_gym.adapt.shrink.recovery import Recovery, RecoveryConfig, Teacher, ask, rows_used
from das_gym.adapt.shrink.refining import refine
from das_gym.adapt.shrink.report import FULL, RECOVERED, SHRUNK, Comparison, Measuring, print_report
from das_gym.adapt.shrink.saving import (
    check_out,
    loaded_dtype,
    new_folder,
    rounded,
    save,
    saved_dtype,
    source_dtype,
    weight_files,
)
from das_gym.adapt.shrink.verifying import Questions, ask_fresh, check_generates, questions, verify

from das_gym.commandline import typed, used
from das_gym.config import build, part_of
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.command import REPORT
from das_gym.drawing.report import write_report
from das_gym.engine.precision import bfloat16_hardware
from das_gym.experiment import (
    MISTAKES,
    ProblemSettings,
    RunError,
    RunsExperiment,
    check_problem,
    required_folder,
    run_folder,
)
from das_gym.files import damage_named, read_json, write_json, write_text
from das_gym.models.base import bytes_of
from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.model import IMAGE, VLM
from das_gym.problem.budget import BUDGET_SETTINGS, Budget, BudgetSettings, check_budget, pick_budget
from das_gym.problem.config import ProblemConfig, changed_settings, problem_words, recorded_settings
from das_gym.problem.costs import Costs
from das_gym.problem.loading import AdaptedModel, Problem, example_costs, load_problem, pick_device, shuffled
from das_gym.problem.mask_cost import SAVED, MaskCost
from das_gym.problem.unit_latency import cost_of
from das_gym.registration import MODELS
from das_gym.runs import find_run, library_versions

RECORD = "shrink.json"
CHECKPOINT = "recovery.pt"
PENDING = "shrink_pending.json"
"""The record, until the model is in its place."""

SHARE = 0.2
"""Share of the MACs to save where nobody says how much."""

LONGEST = 8
"""Prompts of each split whose length is looked at before anything begins: those of most characters."""

IN_ENV_KWARGS = ("units", "vision", "dtype", "device_map", "trust_remote_code")
"""Settings that a search takes as its environment's alone."""


@dataclass(frozen=True)
class ShrinkSettings(RecoveryConfig, ProblemSettings, BudgetSettings):
    """The settings of `python -m adapt shrink`: of recovery, of model and data (a search run brings its own), and these.

    The budget is the search's, and a mask that is given has to keep it, too.

    Attributes:
        out: The folder to write; None is `model` in the run's folder.
        skip_num: Budget: exactly how many layers to delete; None, with no share to save either, is `macs_saved=0.2`.
        search_run: Id of the search run whose mask, model and data to use; None with `mask=None` searches first.
        front, point: Or id of a run of `python -m agents pareto`, and which of its points, from 0 on.
        mask: A mask of one's own: 0 or 1 a layer, 1 = deleted.
        search: Settings of `python -m agents` for the search that comes first, as in `search.evaluations=100`.
        refine: So many of the search's best masks are recovered for a while, and the best of them then takes its mask's
            place, see `das_gym.adapt.refining`; 1 trusts the search.
        test_examples: Most test examples that are answered and scored; None = all.
        generate_batch_size: Prompts that are answered at a time.
        latency_blocks: Timed blocks of each model.
        peak_memory: Whether the full model's memory is measured, too, in a process of its own.
    """

    model: str = "VLM"
    task: str = "answering"
    out: str | None = None
    skip_num: int | None = None
    search_run: int | None = None
    front: int | None = None
    point: int | None = None
    mask: tuple[int, ...] | None = None
    search: dict[str, Any] = field(default_factory=dict)
    refine: int = 1
    test_examples: int | None = 500
    generate_batch_size: int = 8
    latency_blocks: int = 9
    peak_memory: bool = True

    def __post_init__(self) -> None:
        RecoveryConfig.__post_init__(self)
        ProblemSettings.__post_init__(self)
        check_budget(self.asked)
        for name in ("test_examples", "generate_batch_size", "latency_blocks"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; use 1 or more")
        check_chosen(self.mask, self.search_run, self.front, self.point, one="delete")
        check_refine(self.refine, self.mask, self.front)
        if self.refine > 1 and self.recover == "none":
            raise ValueError(f"refine={self.refine} judges masks by what recovery leaves: leave it out, or recover=none")
        if MODELS[self.model].reads != "prompts":
            others = [name for name, entry in MODELS.items() if entry.reads == "prompts"]
            raise ValueError(
                f"model={self.model} answers in no words: shrink is for {', '.join(others)}; see `adapt` itself"
            )

    @property
    def asked(self) -> dict[str, Any]:
        """The budget that a person gave; empty where none was."""
        return {name: getattr(self, name) for name in BUDGET_SETTINGS if getattr(self, name) is not None}

    @property
    def budget(self) -> dict[str, Any]:
        """The budget as a search takes it."""
        return self.asked or {"macs_saved": SHARE}

    def recovery(self) -> RecoveryConfig:
        """The settings of recovery alone."""
        return part_of(RecoveryConfig, self)

    def choice(self) -> Choice | None:
        """What to delete, and from what; None while it is not searched yet.

        Raises:
            ValueError: a search of another kind of model.
            FileNotFoundError: no such search.
        """
        if self.mask is not None:
            return Choice(np.array(self.mask, dtype=bool), self.problem())
        own = {name: value for name, value in changed_settings(self).items() if name not in ("model", "task")}
        if self.front is not None and self.point is not None:
            choice = fronted(self.runs_dir, self.front, self.point, own)
        elif self.search_run is not None:
            choice = searched(self.runs_dir, self.search_run, own)
        else:
            return None
        if MODELS[choice.problem.model].reads != "prompts":
            run = self.search_run if self.front is None else self.front
            raise ValueError(f"run {run} searched {choice.problem.model}, which answers in no words: shrink cannot")
        return choice


def source_of(problem: ProblemConfig) -> Path:
    """The folder of the weights.

    Raises:
        ValueError: none is given and none is bundled.
        FileNotFoundError: it is none of transformers.
    """
    if problem.checkpoint is not None:
        if not (Path(problem.checkpoint) / "config.json").is_file():
            raise FileNotFoundError(f"{problem.checkpoint} holds no config.json: pass the folder of a model of transformers")
        return Path(problem.checkpoint)
    folder = MODELS[problem.model].assets
    if folder is None or not (folder / "config.json").is_file():
        raise ValueError(f"no {problem.model} is bundled here: pass checkpoint=<the folder of a model of transformers>")
    return folder


def check_place(settings: ShrinkSettings, problem: ProblemConfig) -> None:
    """What can be told without loading the model: where it goes, room on the disk, whether this machine has its type.

    Raises:
        ValueError: the reason.
    """
    source = source_of(problem)
    room = sum(path.stat().st_size for path in weight_files(source))
    out = Path(settings.out) if settings.out is not None else Path(settings.runs_dir) / "new" / "model"
    check_out(out, source, room)
    check_units(problem.units)
    if problem.device_map is not None:
        raise ValueError(
            f"device_map={problem.device_map}: a model is shrunk on one device; leave device_map out, or pass device="
        )
    check_problem(problem)
    if problem.dtype in (None, "auto"):
        check_dtype(loaded_dtype(source), pick_device(problem.device), source)


def check_dtype(dtype: torch.dtype, device: torch.device, source: Path) -> None:
    """Refuse weights of a type for which this machine has no instructions; `dtype=` computes in another one.

    Raises:
        ValueError: it has none.
    """
    lacks = device.type == "cpu" and (
        dtype == torch.float16 or (dtype == torch.bfloat16 and bfloat16_hardware(device) is None)
    )
    if lacks or (dtype == torch.bfloat16 and device.type == "cuda" and bfloat16_hardware(device) is None):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"the weights in {source} are {name}, for which this {device.type} has no instructions: pass dtype=float32 to "
            f"compute in that (the new folder is saved in {name} all the same), or dtype={name} to compute in it slowly"
        )


def check_loaded(settings: ShrinkSettings, problem: Problem, mask: np.ndarray | None) -> None:
    """What needs the model: shared weights, a budget or a mask that it does not allow.

    Raises:
        ValueError: the reason.
    """
    vlm = as_vlm(problem)
    check_shared(vlm.model, vlm.tower is not None)
    check_memory(vlm)
    if settings.recover == "adapters":
        check_places(vlm)
    if mask is None:
        bound(settings, problem, settings.budget)
        return
    if not vlm.check_mask(mask).any():
        raise ValueError("the mask skips nothing: there is nothing to delete; give one with a 1, or macs_saved=")
    budget = bound(settings, problem, settings.asked or {"skip_num": None})
    if not budget.is_kept_by(mask[None])[0]:
        cost = cost_of(problem, "macs_saved") if budget.cost is None else budget.cost
        raise ValueError(
            f"the mask skips {mask.sum()} layers, {100 * cost.saved(mask[None])[0]:.1f} % of the {SAVED[cost.setting]}, and "
            f"not {budget.describe()}: leave {next(iter(settings.asked))} out, or the mask"
        )
    check_answers(problem, mask)


def check_answers(problem: Problem, mask: np.ndarray) -> None:
    """Refuse a mask without whose layers the model does not generate as it should.

    Raises:
        ValueError: the reason.
    """
    vlm = as_vlm(problem)
    check_generates(cut(vlm, mask), questions(vlm, problem.task, problem.splits.test, count=1))


def check_memory(vlm: VLM) -> None:
    """Refuse a model beside which there is no room for the smaller one, which a process of its own loads to check it.

    Raises:
        ValueError: how much is needed and how much is free.
    """
    needed, free = bytes_of(list(vlm.model.parameters())), free_bytes(vlm.device)
    if needed > free:
        raise ValueError(
            "the saved folder is loaded once more, in a process of its own, to check it: that takes up to "
            f"{needed / 1e9:.1f} GB beside this one, and {free / 1e9:.1f} GB of memory are free: make room, or use a "
            "smaller dtype"
        )


def bound(settings: ShrinkSettings, problem: Problem, budget: Mapping[str, Any]) -> Budget:
    """A budget of the problem's model; latency is that of `search.latency_batch` prompts at a time, one unless it is told.

    Raises:
        ValueError: no mask can keep it.
    """
    batch = settings.search.get("latency_batch", 1)
    return pick_budget(len(problem.layer_names), budget, lambda setting: cost_of(problem, setting, batch))


def check(settings: ShrinkSettings) -> None:
    """Refuse whatever can be told before a search or a run begins; the model is loaded, and stays so.

    Raises:
        ValueError, FileNotFoundError: the reason.
    """
    if settings.resume is not None and is_saved(settings, find_run(settings.runs_dir, settings.resume)):
        return
    choice = settings.choice()
    problem = settings.problem() if choice is None else choice.problem
    check_place(settings, problem)
    loaded = load_problem(problem)
    check_loaded(settings, loaded, None if choice is None else choice.mask)
    test = shuffled(loaded.task, loaded.splits.test, settings.test_examples)
    check_test_images(loaded.task, test)
    check_longest(loaded, test)
    train = loaded.splits.train
    if settings.recover != "none" and len(train):
        check_longest(loaded, [train[row] for row in sorted(rows_used(len(train), settings.recovery()))])


def check_longest(problem: Problem, examples: Sequence[Any]) -> None:
    """Encode the examples of the longest texts: one that is too long for the model is named before anything is searched.

    Raises:
        ValueError: names it.
    """
    processor: Any = problem.task.processor
    prompts = ((prompt, example) for example in examples for prompt in problem.task.pairs([example]))
    for prompt, example in heapq.nlargest(LONGEST, prompts, key=lambda each: len(each[0].text)):
        try:
            processor.encode(prompt)
        except ValueError as error:
            raise ValueError(f"{example.key}: {error}") from error


def as_vlm(problem: Problem) -> VLM:
    """Its model.

    Raises:
        TypeError: another family's.
    """
    if not isinstance(problem.vlp, VLM):
        raise TypeError(f"shrink needs a model of transformers, not a {type(problem.vlp).__name__}")
    return problem.vlp


def adapted_costs(problem: Problem, smaller: VLM, mask: np.ndarray) -> Costs:
    """Costs of the model with the adapters that recovery gave the smaller one."""
    backbone = dataclasses.replace(problem.backbone, vlp=masked_with(as_vlm(problem), smaller, mask))
    return example_costs(AdaptedModel(backbone, problem.head, problem.task), problem.splits)


class ShrinkExperiment(SearchingExperiment):
    """`python -m adapt shrink`.

    Args:
        search_first: As for `SearchingExperiment.search_with`.
        agents: Likewise.
        search_report: What a search tells in a report, since this package knows nothing of agents; None = nothing.
        compare: Makes the experiment that `python -m adapt shrink compare` runs.
    """

    siblings = ("compare",)

    def __init__(
        self,
        search_first: SearchFirst | None = None,
        agents: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
        search_report: SearchReport | None = None,
        compare: Callable[[], RunsExperiment] | None = None,
    ) -> None:
        super().__init__("adapt shrink", save_git_info=False)
        self.compare = compare
        self.add_settings(ShrinkSettings, check)
        self.search_with(search_first, agents)
        self.main(shrink)

        @self.post_run_hook  # a run is complete when its report is there
        def report(_run: Any) -> None:
            """A report beside the record; its path is told."""
            folder = run_folder(_run)
            if folder is not None and (folder / RECORD).is_file():
                print(f"report: {write_report(folder / REPORT, [run_report(folder, search_report)])}")

    def check_first(self, given: Mapping[str, Any]) -> None:
        """Raise for whatever can be told before a search or a run begins; the model is loaded, and stays so.

        Raises:
            RunError: the reason.
        """
        try:
            check(build(ShrinkSettings, given))
        except MISTAKES as error:
            raise RunError(str(error)) from error

    def search_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the search is told."""
        settings = build(ShrinkSettings, given)
        return told_to_search(settings, settings.search)

    def run_commandline(self, argv: Sequence[str] | None = None) -> Any:
        """As `RunsExperiment.run_commandline`; `compare` behind the name is an experiment of its own."""
        words = list(sys.argv if argv is None else argv)
        if self.compare is not None and words[1:2] == ["compare"]:
            return self.compare().run_commandline([words[0], *words[2:]])
        return super().run_commandline(words)


def told_to_search(settings: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """What a search for something to delete is told.

    Args:
        settings: A command's, with a `budget`.
        more: Settings of `python -m agents` that come before those.
    """
    told = told_to_any_search(settings)
    env_kwargs = {name: told.pop(name) for name in IN_ENV_KWARGS if name in told}
    asked = {**told, **settings.budget, **more}
    if env_kwargs or "env_kwargs" in more:
        asked["env_kwargs"] = {**env_kwargs, **more.get("env_kwargs", {})}
    return asked


def shrink(_run: Any, _config: Mapping[str, Any], search: Any) -> float:
    """Delete, recover, save, check and compare; the saved model's score is the result."""
    del search  # named so that Sacred lets it hold keys of its own
    settings = build(ShrinkSettings, _config)
    folder = required_folder(_run)
    if is_saved(settings, folder):
        return end(settings, folder)
    choice = settings.choice()
    if choice is None:
        raise ValueError(f"give search_run=<id> or mask=[...]; `{typed('adapt shrink')}` alone searches first")
    if choice.remark:
        print(choice.remark)
    out = place_of(settings, folder)
    problem = load_problem(choice.problem)
    teacher = teacher_of(problem, settings.recovery())
    choice, rounds = refined(choice, problem, settings, folder, teacher)
    work = Work(settings, choice, problem, out, teacher, rounds)
    comparison = work.run(folder, _run.log_scalar)
    (folder / PENDING).replace(folder / RECORD)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    _run.add_artifact(folder / RECORD)
    for row in comparison.rows.values():
        for name in ("score", "loss", "parameters", "macs"):
            _run.log_scalar(f"{row.name}.{name}", float(getattr(row, name)))
    print_report(comparison, work.title, work.drawn)
    print(f"record: {folder / RECORD}, model: {out}")
    return comparison.final.score


def teacher_of(problem: Problem, config: RecoveryConfig) -> Teacher | None:
    """What the whole model says to the examples of recovery; None where nobody asks, or a mask decides what is asked."""
    if config.recover == "none" or config.of_layers or not len(problem.splits.train):
        return None
    return ask(as_vlm(problem), problem.task, problem.splits.train, config, ())


def refined(
    choice: Choice, problem: Problem, settings: ShrinkSettings, folder: Path, teacher: Teacher | None
) -> tuple[Choice, list[Round]]:
    """The mask to delete, where several of a search's are to be tried; and what they came to."""
    masks = [mask for mask in candidates(choice.mask, choice.others, settings.refine) if answers(problem, mask)]
    if len(masks) < 2:
        return choice, []
    rounds = refine(problem, as_vlm(problem), masks, settings.recovery(), folder, teacher)
    return dataclasses.replace(choice, mask=taken(rounds, masks)), rounds


def answers(problem: Problem, mask: np.ndarray) -> bool:
    """Whether `check_answers` lets a mask pass."""
    try:
        check_answers(problem, mask)
    except ValueError:
        return False
    return True


def place_of(settings: ShrinkSettings, folder: Path) -> Path:
    """Where the model goes."""
    return Path(settings.out) if settings.out is not None else folder / "model"


def is_saved(settings: ShrinkSettings, folder: Path) -> bool:
    """Whether a run was stopped when its model was in its place: its record may wait to be, too."""
    return record_of(folder).is_file() and place_of(settings, folder).exists()


def record_of(folder: Path) -> Path:
    """The record, or where it waits until the model is in its place."""
    return folder / PENDING if (folder / PENDING).is_file() else folder / RECORD


def end(settings: ShrinkSettings, folder: Path) -> float:
    """What is left to do then; the saved model's score.

    Raises:
        ValueError: the record is damaged.
    """
    record = record_of(folder)
    with damage_named(record, "remove it and the model, and resume again"):
        score = float(read_json(record)["models"][-1]["score"])
    record.replace(folder / RECORD)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    print(f"the model was saved before the run was stopped; record: {folder / RECORD}, model: {place_of(settings, folder)}")
    return score


@dataclass
class Work:
    """One model on its way.

    Attributes:
        settings: The command's.
        choice: What is deleted, from what.
        problem: The whole model with its data; it stays as it is.
        out: The folder to write.
        teacher: What the whole model says, where it was asked before.
        rounds: What the masks came to that it was chosen among.
    """

    settings: ShrinkSettings
    choice: Choice
    problem: Problem
    out: Path
    teacher: Teacher | None = None
    rounds: Sequence[Round] = ()

    def __post_init__(self) -> None:
        self.whole = as_vlm(self.problem)
        self.gone = self.whole.gone_of(self.choice.mask)
        self.gone_seen = self.whole.gone_of(self.choice.mask, IMAGE)
        self.drawn = drawn(self.whole, self.choice.mask)
        self.source = source_of(self.choice.problem)
        self.dtype = saved_dtype(source_dtype(self.source), self.whole.model.dtype)
        self.test = shuffled(self.problem.task, self.problem.splits.test, self.settings.test_examples)

    @property
    def title(self) -> str:
        """What was scored on."""
        root = self.choice.problem.data_root
        return f"{len(self.test):,} test examples of {'the bundled data' if root is None else Path(root).name}"

    def run(self, folder: Path, log: Callable[[str, float, int], None]) -> Comparison:
        """From deletion to the saved folder, with the record pending in the run's."""
        task, mask = self.problem.task, self.choice.mask
        models = {FULL: self.whole, SHRUNK: cut(self.whole, mask)}
        rounded(models[SHRUNK].model, self.dtype)
        final = cut(self.whole, mask)
        settings, examples = self.settings.recovery(), self.problem.splits.train
        recovery = Recovery(final, self.whole, task, examples, settings, folder / CHECKPOINT, self.teacher)
        recovery.run(log)
        rounded(final.model, self.dtype)  # what is measured is what is saved
        if self.settings.recover != "none":
            models[RECOVERED] = final
        asked = questions(self.whole, task, self.test)
        with new_folder(self.out) as part:
            tokenizer = self.choice.problem.tokenizer
            save(final.model, part, self.source, Path(tokenizer) if tokenizer else self.source, self.dtype)
            verified = verify(part, final, mask, asked, self.dtype)
            comparison = self._measuring(final).compare(models)
            comparison = comparison.with_peaks(
                {FULL: self._peak(asked, tokenizer), comparison.final.name: verified.peak_bytes}
            )
            card = self._card(comparison, recovery.trained, verified)
            write_text(part / "README.md", card.text())
            self.verified = verified
            write_json(folder / PENDING, self.record(comparison))
        return comparison

    def _measuring(self, final: VLM) -> Measuring:
        settings, problem = self.settings, self.problem
        return Measuring(
            problem.task,
            self.test,
            problem.costs,
            adapted_costs(problem, final, self.choice.mask) if has_adapters(final.model) else None,
            self.choice.mask,
            self.dtype,
            settings.generate_batch_size,
            settings.latency_blocks,
        )

    def _peak(self, asked: Questions, tokenizer: str | None) -> int | None:
        """Memory that the full model takes in a process of its own, which needs its processor in the same folder."""
        if not self.settings.peak_memory or tokenizer is not None:
            return None
        if bytes_of(list(self.whole.model.parameters())) > free_bytes(self.whole.device):
            print("the full model's memory is not measured: there is no room to load it once more beside this one")
            return None
        return int(ask_fresh(self.source, asked.given())["peak_bytes"])

    def _card(self, comparison: Comparison, trained: int, verified: Any) -> Card:
        settings = self.settings
        return Card(
            source=self.source,
            auto=auto_class(self.whole.model.config).__name__,
            drawn=self.drawn,
            gone=self.gone,
            gone_seen=self.gone_seen,
            budget=self._budget(),
            recovery=settings.recovery(),
            trained=(trained, len(self.problem.splits.train)),
            widths=settings.recovery().widths(self.whole.feature_size),
            data=self.title,
            comparison=comparison,
            verified=verified,
            command=self.command,
        )

    def _budget(self) -> str:
        if self.settings.front is not None:
            return f"point {self.settings.point} of the front of run {self.settings.front}"
        if self.settings.search_run is None:
            return "a mask that was given"
        among = f", of whose {len(self.rounds[0].masks)} best it recovers best" if self.rounds else ""
        return f"found by search run {self.settings.search_run}{among}"

    @property
    def command(self) -> str:
        """What does the same again."""
        default = ShrinkSettings()
        skipped = {f.name for f in dataclasses.fields(ProblemConfig)} | {
            "runs_dir",
            "use",
            "resume",
            "search",
            "mask",
            "search_run",
            "refine",
            "front",
            "point",
        }
        changed = {
            f.name: getattr(self.settings, f.name)
            for f in dataclasses.fields(ShrinkSettings)
            if f.name not in skipped and getattr(self.settings, f.name) != getattr(default, f.name)
        }
        mask = json.dumps(self.choice.mask.astype(int).tolist(), separators=(",", ":"))
        more = [shlex.quote(f"{name}={value}") for name, value in changed.items() if name not in BUDGET_SETTINGS]
        return typed("adapt shrink", problem_words(self.choice.problem, shlex.quote(f"mask={mask}"), *more))

    def record(self, comparison: Comparison) -> dict[str, Any]:
        """All of it as plain JSON values."""
        task = self.problem.task
        questions_of = [prompt.question for prompt in task.pairs(task.open_ended(self.test))]  # type: ignore[attr-defined]
        answers = [
            {"key": e.key, "question": q, **{name: texts[n] for name, texts in comparison.texts.items()}}
            for n, (e, q) in enumerate(zip(self.test, questions_of, strict=True))
        ]
        apart, low, high = comparison.difference()
        return {
            "settings": json.loads(json.dumps({**dataclasses.asdict(self.settings), "use": used()})),
            "problem": recorded_settings(dataclasses.asdict(self.choice.problem)),
            "source": str(self.source),
            "out": str(self.out.absolute()),
            "mask": self.choice.mask.astype(int).tolist(),
            "layers": list(self.problem.layer_names),
            "deleted": self.gone,
            "deleted_of_vision": self.gone_seen,
            "drawn": self.drawn,
            "dtype": str(self.dtype).removeprefix("torch."),
            "models": [row.record() for row in comparison.rows.values()],
            "difference": {"score": apart, "low": low, "high": high},
            "loss_regained": comparison.regained(),
            "refined": [dataclasses.asdict(each) for each in self.rounds],
            "verified": dataclasses.asdict(self.verified),
            "answers": answers,
            "left_out": self.problem.splits.left_out_count,
            "units": Architecture.of_layers(self.whole.layers, MaskCost.of(self.problem.costs)).record(),
            "command": self.command,
            "versions": library_versions(),
        }
