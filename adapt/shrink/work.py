"""One model on its way from deletion to the saved folder."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.adapt_experiment import Choice
from das_gym.adapt.examples import write_examples
from das_gym.adapt.memory import free_bytes
from das_gym.adapt.refining import Round
from das_gym.adapt.shrink.card import Card
from das_gym.adapt.shrink.checks import as_vlm, source_of
from das_gym.adapt.shrink.recovery import Recovery, Teacher
from das_gym.adapt.shrink.report import FULL, RECOVERED, SHRUNK, Comparison, Measuring
from das_gym.adapt.shrink.saving import new_folder, rounded, save, saved_dtype
from das_gym.adapt.shrink.settings import CHECKPOINT, PENDING, ShrinkSettings
from das_gym.adapt.shrink.verifying import Questions, ask_fresh, is_remote, questions, verify

from das_gym.commandline import typed, used
from das_gym.drawing.architecture import Architecture
from das_gym.files import write_json, write_text
from das_gym.models.base import bytes_of
from das_gym.models.transformers.cutting import cut, drawn
from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.model import IMAGE, VLM
from das_gym.models.transformers.stand_ins import has_adapters, masked_with
from das_gym.models.transformers.weights import source_dtype
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.problem.config import ProblemConfig, problem_words, recorded_settings
from das_gym.problem.costs import Costs
from das_gym.problem.loading import AdaptedModel, Problem, example_costs, shuffled
from das_gym.runs import library_versions


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
            processor = Path(tokenizer) if tokenizer else self.source
            save(final.model, part, self.source, processor, self.dtype, is_remote(self.whole))
            verified = verify(part, final, mask, asked, self.dtype)
            comparison = self._measuring(final).compare(models)
            comparison = comparison.with_peaks(
                {FULL: self._peak(asked, tokenizer), comparison.final.name: verified.peak_bytes}
            )
            card = self._card(comparison, recovery.trained, verified)
            write_text(part / "README.md", card.text())
            self.verified = verified
            write_examples(folder, task, self.test, comparison.texts)
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
            brings_code=is_remote(self.whole),
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
            "units": Architecture.of_layers(self.whole.layers, self.problem.costs.macs_cost).record(),
            "command": self.command,
            "versions": library_versions(),
        }


def adapted_costs(problem: Problem, smaller: VLM, mask: np.ndarray) -> Costs:
    """Costs of the model with the adapters that recovery gave the smaller one."""
    backbone = dataclasses.replace(problem.backbone, vlp=masked_with(as_vlm(problem), smaller, mask))
    return example_costs(AdaptedModel(backbone, problem.head, problem.task), problem.splits)
