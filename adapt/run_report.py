"""The reports of runs of `adapt` and its sub-commands, and `python -m agents report`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from das_gym.adapt.compare.kept import RECORD as COMPARED
from das_gym.adapt.compare.table import HEADS, Line, cells
from das_gym.adapt.examples import read_examples
from das_gym.adapt.report import IN_WORDS
from das_gym.adapt.shrink.report import FULL
from das_gym.adapt.subnets import JOINT_RECORD, RECORD
from das_gym.agents.run_report import search_report

from das_gym.config import build
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.command import ReportSettings, report, same_again
from das_gym.drawing.report import Answers, Asked, Comparison, Heat, Progress, RunReport
from das_gym.files import read_json
from das_gym.problem.budget import BUDGET_SETTINGS
from das_gym.problem.config import ProblemConfig
from das_gym.registration import ENVIRONMENTS

SHRUNK_RECORD = "shrink.json"
SEARCH_RECORD = "search.json"

SearchReport = Callable[[Path], RunReport]
"""What a search tells, by its folder: this package knows nothing of searches."""


def main(settings: ReportSettings) -> None:
    """Write the report of runs of any command."""
    report(settings, partial(run_report, search_report=search_report))


def run_report(folder: Path, search_report: SearchReport | None) -> RunReport:
    """What a finished run tells, its search included where that is kept beside it.

    Raises:
        FileNotFoundError: no run of a known kind ended there.
        ValueError: its record cannot be read.
    """
    if search_report is not None and (folder / SEARCH_RECORD).is_file():
        return search_report(folder)
    kinds: dict[str, Callable[[Path, dict[str, Any]], RunReport]] = {
        RECORD: _adapted,
        JOINT_RECORD: _joint,
        SHRUNK_RECORD: _shrunk,
        COMPARED: _compared,
    }
    for name, tell in kinds.items():
        if (folder / name).is_file():
            record = read_json(folder / name)
            try:
                told = tell(folder, record).checked()
                search_run = str(record["settings"].get("search_run"))
            except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
                raise ValueError(f"{folder / name} is no record of this version ({error!r}); run it again") from error
            shown = read_examples(folder)
            told = told if shown is None else dataclasses.replace(told, answers=shown)
            search = folder.parent / search_run
            if search_report is None or not search_run.isdecimal() or not (search / SEARCH_RECORD).is_file():
                return told
            return told.with_search(search_report(search))
    raise FileNotFoundError(
        f"{folder} has none of {', '.join([SEARCH_RECORD, *kinds])}: no run ended there; go on with it by resume="
    )


def _adapted(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.adapt_experiment import AdaptSettings

    own, defaults = _problem(record["problem"]), dataclasses.asdict(AdaptSettings())
    mask = json.dumps(record["models"][0]["mask"], separators=(",", ":"))
    again = same_again(folder, "adapt", defaults, **own, mask=mask, search_run=None, search=None)
    return _finetuned(folder, record, "fine-tuned", again)


def _joint(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.das_experiment import JointSearchSettings

    told = _finetuned(
        folder,
        record,
        "searched while adapters trained, then fine-tuned",
        same_again(folder, "adapt das", dataclasses.asdict(JointSearchSettings()), **_problem(record["problem"])),
    )
    turns = record["search"]["turns"]
    rewards = [reward for turn in turns for reward in turn["rewards"]]
    best = list(accumulate(rewards, max))
    chances = [[1 / (1 + math.exp(-g)) for g in turn["preferences"]] for turn in turns if turn["preferences"] is not None]
    return dataclasses.replace(told, progress=Progress(rewards, best) if rewards else None, heat=Heat.of(chances))


def _finetuned(folder: Path, record: dict[str, Any], done: str, command: str) -> RunReport:
    models = record["models"]
    subnet, evaluation = models[0], models[0]["evaluation"]
    metric = evaluation["metric_name"].replace("_", " ")
    return RunReport(
        name=f"run {folder.name}",
        title=f"{_what(record['problem'])}, {done}",
        facts={
            "skips": ", ".join(subnet["skipped_layers"]) or "nothing",
            f"{metric} on test, %": f"{100 * evaluation['metric']:.2f}",
            "MACs saved, %": f"{100 * subnet['macs_saved']:.1f}",
            "trained parameters": f"{subnet['trainable_parameters']:,}",
            "test examples": f"{evaluation['examples']:,}",
        },
        architecture=_architecture(record.get("units"), [f"layer.{i}" for i in range(len(subnet["mask"]))]),
        mask=subnet["mask"],
        commands=[command],
        comparison=_comparison(models),
        versions=record.get("versions"),
    )


def _comparison(models: Sequence[Mapping[str, Any]]) -> Comparison:
    """The models as `adapt` prints them."""

    def row(what: str, show: Callable[[Mapping[str, Any]], str]) -> tuple[str, list[str]]:
        return what, [show(model) for model in models]

    def scored(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda m: "-" if not m["evaluation"] else f"{100 * m['evaluation'][name]:.2f}"

    def spread(name: str, interval: str) -> Callable[[Mapping[str, Any]], str]:
        def show(model: Mapping[str, Any]) -> str:
            if model[name] is None:
                return "-"
            low, high = model[interval]
            return f"{model[name]:.2f} ({low:.2f}..{high:.2f})"

        return show

    def called(model: Mapping[str, Any]) -> str:
        words = IN_WORDS.get(model["name"], model["name"])
        return f"{words}, trained weights from the package" if model["from_package"] else words

    metric = models[0]["evaluation"]["metric_name"].replace("_", " ")
    rows = [
        row(f"{metric} on test, %", scored("metric")),
        row("loss on test, nats", lambda m: "-" if not m["evaluation"] else f"{m['evaluation']['loss']:.4f}"),
        row("trainable parameters", lambda m: f"{m['trainable_parameters']:,}" if m["trainable_parameters"] else "-"),
        row("parameters", lambda m: f"{m['parameters']:,}"),
        row("MACs of one example, M", lambda m: f"{m['macs'] / 1e6:,.2f}"),
        row("MACs saved relative to the baseline, %", lambda m: f"{100 * m['macs_saved']:.2f}"),
        row("latency, ms (quartiles)", spread("latency_ms", "latency_quartiles_ms")),
        row("times as fast as the baseline (95 % interval)", spread("speedup", "speedup_interval")),
    ]
    return Comparison([called(model) for model in models], rows)


def _shrunk(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.shrink.settings import ShrinkSettings

    own, defaults = _problem(record["problem"]), dataclasses.asdict(ShrinkSettings())
    found_by = dict.fromkeys((*BUDGET_SETTINGS, "search_run", "search", "refine", "front", "point"))
    mask = json.dumps(record["mask"], separators=(",", ":"))
    models, apart = record["models"], record["difference"]
    final, names = models[-1], [model["name"] for model in models]
    answers = record["answers"]
    said = [[answer[name] for name in names] for answer in answers]
    return RunReport(
        name=f"run {folder.name}",
        title=f"{Path(record['source']).name} shrunk: {sum(record['mask'])} of {len(record['mask'])} units deleted",
        facts={
            "deleted": ", ".join(n for n, bit in zip(record["layers"], record["mask"], strict=True) if bit) or "nothing",
            "score, %": f"{100 * final['score']:.1f} against {100 * models[0]['score']:.1f} for the baseline",
            "difference, points": "{:+.1f} (95 % interval {:+.1f}..{:+.1f})".format(
                *(100 * apart[name] for name in ("score", "low", "high"))
            ),
            "MACs saved, %": f"{100 * final['macs_saved']:.1f}",
            "parameters": f"{final['parameters']:,} instead of {models[0]['parameters']:,}",
            "folder": record["out"],
        },
        architecture=_architecture(record.get("units"), record["layers"]),
        mask=record["mask"],
        commands=[same_again(folder, "adapt shrink", defaults, **own, **found_by, mask=mask)],
        comparison=Comparison(["full model (baseline)" if name == FULL else name for name in names], _lines(models)),
        answers=Answers.of(names, said, lambda number: Asked(answers[number]["question"])) if said else None,
        versions=record["versions"],
    )


def _lines(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The models as `adapt shrink` prints them."""

    def milliseconds(value: Sequence[float]) -> str:
        return "{:.3g} ({:.3g}..{:.3g})".format(*value)

    def times(value: Sequence[float] | None) -> str:
        return "-" if value is None else "{:.2f} ({:.2f}..{:.2f})".format(*value)

    shown: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "score of what it says, %": lambda m: f"{100 * m['score']:.1f}",
        "its 95 % interval": lambda m: f"{100 * m['low']:.1f}..{100 * m['high']:.1f}",
        "loss, nats": lambda m: f"{m['loss']:.4f}",
        "parameters": lambda m: f"{m['parameters']:,}",
        "bytes of the weights": lambda m: f"{m['bytes']:,}",
        "MACs saved relative to the baseline, %": lambda m: f"{100 * m['macs_saved']:.2f}",
        "first token, ms (quartiles)": lambda m: milliseconds(m["prefill_ms"]),
        "times as fast as the baseline (95 % interval)": lambda m: times(m["prefill_speedup"]),
        "each further token, ms (quartiles)": lambda m: milliseconds(m["decode_ms"]),
        "times as fast as the baseline, further tokens (95 % interval)": lambda m: times(m["decode_speedup"]),
    }
    return [(what, [show(model) for model in models]) for what, show in shown.items()]


def _compared(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.compare_experiment import CompareSettings

    if "trials" not in record:  # of searches or agents
        files = [path for name in ("compare.md", "compare.png", COMPARED) if (path := folder / name).is_file()]
        raise FileNotFoundError(f"a report of {folder} would say what {files[0]} says: open that")
    lines = [build(Line, line) for line in record["lines"]]
    if not lines:
        raise FileNotFoundError(f"nothing of {folder} has been measured yet: go on with it by resume=")
    best = max(lines, key=lambda line: line.score)
    shown = max((line for line in lines if line.key.startswith("das_")), key=lambda line: line.score, default=best)
    mask = next(list(trial["mask"]) for trial in record["trials"] if trial["entrant"] == shown.key)
    metric = record["metric"].replace("_", " ")
    said = {sentence.partition(": ")[0]: "" for sentence in record["verdict"]}
    for sentence in record["verdict"]:
        row, _, told = sentence.partition(": ")
        said[row] = f"{said[row]} {told[:1].upper()}{told[1:]}".strip()
    defaults = dataclasses.asdict(CompareSettings())
    return RunReport(
        name=f"run {folder.name}",
        title=f"{_what(record['problem'])}, methods of fine-tuning compared",
        facts={
            f"{metric} on test, %": f"{100 * best.score:.2f} ({best.title}, the best)",
            "shown under a mask": shown.title,
            "trainings": f"{len(record['trials']):,}",
            **said,
        },
        architecture=_architecture(record.get("units"), [f"layer.{i}" for i in range(len(mask))]),
        mask=mask,
        commands=[same_again(folder, "adapt compare", defaults, **_problem(record["problem"]), searches=None)],
        comparison=Comparison(list(HEADS[1:]), [(row[0], list(row[1:])) for row in map(cells, lines)], "Method by method"),
        versions=record["versions"],
    )


def _architecture(units: Sequence[Mapping[str, Any]] | None, names: Sequence[str]) -> Architecture:
    return Architecture.of(names) if units is None else Architecture.of_record(units)


def _what(problem: Mapping[str, Any]) -> str:
    """Model and task by the environment's id, or by their names where it is not registered here."""
    pair = (problem["model"], problem["task"])
    return next((entry.id for entry in ENVIRONMENTS.values() if (entry.model, entry.task) == pair), " on ".join(pair))


def _problem(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Model and data of a run, as settings."""
    return {name: value for name, value in problem.items() if name in ProblemConfig.__dataclass_fields__}
