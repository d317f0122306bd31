"""The commands that write what matters, each small: how to start it, how to resume it, and what it must have written."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from das_gym.files import read_json
from das_gym.problem.latency import measure_latency
from das_gym.shapes.vqa import write_shapes
from tests.models.transformers import tiny
from tests.small_world import small_world
from tests.tasks.answering import making

MASK = [0, 1, 0, 0, 1, 0]
TRAINING = {"train": {"steps": 4, "save_every": 1, "batch_size": 4}, "rank_images": None}
DAS = {"search_epochs": 2, "warmup_epochs": 1, "finetune_epochs": 1, "steps_per_turn": 2, "skip_num": 2}
DAS |= {
    "masks_per_turn": 2,
    "reward_examples": 4,
    "batch_size": 64,
    "image_size": None,
    "augment": False,
    "bottleneck": 16,
    "skip_bottleneck": 48,
}


@dataclass(frozen=True)
class Job:
    """A command in a separate folder.

    Attributes:
        run: Runs it with settings in this process: where `runs_dir` is, `resume` if there is a run to resume.
        files: What it must have written, from the run's folder, or the folder next to the runs that `out` names.
        settings: What it is given when it begins.
        volatile: Names of entries of its JSON files that may differ: times, ids, places. None = its files do to the byte.
        is_whole: Whether a run's record, which grows while it runs, has all entries.
    """

    run: Callable[[dict[str, Any]], Any]
    files: tuple[str, ...]
    settings: dict[str, Any]
    out: str | None = None
    volatile: re.Pattern[str] | None = None
    is_whole: Callable[[Path], bool] = lambda run: True

    def begin_or_go_on(self, folder: Path) -> None:
        """Start or resume the command, as a user would in this folder."""
        runs = folder / "runs"
        given = {"runs_dir": str(runs)}
        out = {} if self.out is None else {"out": str(folder / self.out)}
        begun = [path.parent for path in runs.glob("*/config.json") if (path.parent / "run.json").is_file()]
        if not begun:
            self.run({**given, **self.settings, **out})
            return
        first = min(begun, key=lambda path: int(path.name))  # others are parts of it
        if read_json(first / "run.json")["status"] != "COMPLETED":
            self.run({**given, **out, "resume": int(first.name)})

    def written(self, folder: Path) -> dict[str, str]:
        """A hash of each file that counts, of the run that has them all."""
        place = folder / self.out if self.out else None
        for run in sorted((folder / "runs").glob("[0-9]*"), key=lambda path: -int(path.name)):
            found = [(place or run) / name for name in self.files]
            if all(path.is_file() for path in found) and self.is_whole(run):
                return {path.name: hashlib.sha256(self._content(path)).hexdigest() for path in found}
        return {}

    def _content(self, path: Path) -> bytes:
        if self.volatile is None or path.suffix != ".json":
            return path.read_bytes()
        return json.dumps(scrubbed(read_json(path), self.volatile)).encode()


def scrubbed(value: Any, volatile: re.Pattern[str]) -> Any:
    """A record without the entries whose names are volatile."""
    if isinstance(value, dict):
        return {k: scrubbed(v, volatile) for k, v in value.items() if not volatile.fullmatch(k)}
    return [scrubbed(each, volatile) for each in value] if isinstance(value, list) else value


@functools.cache
def world_in(folder: Path) -> dict[str, str]:
    """A small world: a model, a supernet and data."""
    return small_world(folder, write_shapes(folder / "data", seed=5, train_scenes=12, val_scenes=12))


def _without_supernet(folder: Path) -> dict[str, str]:
    return {name: value for name, value in world_in(folder).items() if name != "supernet"}


def _run(command: Callable[[], Any], *patches: AbstractContextManager[Any]) -> Callable[[dict[str, Any]], Any]:
    """Return what runs a command with settings; patches hold meanwhile alone."""

    def run(settings: dict[str, Any]) -> Any:
        with ExitStack() as stack:
            for each in patches:
                stack.enter_context(each)
            return command().run(settings)

    return run


def _time_little(module: ModuleType) -> AbstractContextManager[Any]:
    """Latency is measured once there: a third of a job's time, and nothing that is compared."""
    return patch.object(module, "measure_latency", functools.partial(measure_latency, blocks=1, runs=1))


def _search(folder: Path) -> Job:
    from das_gym.agents.run_commands import search as ex

    bandit = {"env_id": "DAS-METER-VQA-v0", "agent": "bandit", "skip_num": 2, "evaluations": 9, "reward_examples": 4}
    return Job(_run(lambda: ex), ("search.json", "search_history.json"), {**world_in(folder), **bandit})


def _table_search(folder: Path) -> Job:
    """A search that a table answers: quick, so that CI has a fault test."""
    from das_gym.agents.run_commands import search as ex

    del folder
    settings = {"env_id": "DAS-METER-VQA-Tabular-v0", "agent": "random", "evaluations": 9}
    return Job(_run(lambda: ex), ("search.json", "search_history.json"), settings)


def _pareto(folder: Path) -> Job:
    from das_gym.agents.run_commands import pareto as ex

    del folder
    volatile = re.compile(r"settings|run|(.*_)?seconds")
    settings = {"env_id": "DAS-METER-VQA-Tabular-v0", "evaluations": 40}
    return Job(_run(lambda: ex), ("front.json",), settings, volatile=volatile)


def _table(folder: Path) -> Job:
    from das_gym.agents.run_commands import table as ex

    counts = {"reward_examples": 6, "test_examples": 4, "problem": {"eval_batch_size": 2}}
    return Job(_run(lambda: ex), ("table.npz",), {**world_in(folder), **counts})


def _supernet(folder: Path) -> Job:
    from das_gym.adapt.run_commands import supernet as ex

    training = {name: value for name, value in TRAINING.items() if name != "rank_images"}
    return Job(_run(lambda: ex), ("supernet.safetensors",), {**_without_supernet(folder), **training})


def _adapt(folder: Path) -> Job:
    """The main job: search and fine-tuning in one run."""
    from das_gym.adapt import report
    from das_gym.adapt.run_commands import adapt as ex

    files = ("search.json", "adapter.safetensors", "full_model_adapter.safetensors")
    search = {"agent": "bandit", "skip_num": 2, "evaluations": 6, "reward_examples": 4}
    return Job(_run(lambda: ex, _time_little(report)), files, {**world_in(folder), **TRAINING, "search": search})


def _das(folder: Path) -> Job:
    from das_gym.adapt import report
    from das_gym.adapt.run_commands import das as ex

    settings = {**_without_supernet(folder), "das": DAS, "save_every": 1}
    run = _run(lambda: ex, _time_little(report))
    return Job(run, ("adapter.safetensors", "found.json"), settings)


@functools.cache
def answering_in(folder: Path) -> dict[str, Any]:
    """A tiny model of transformers and data for it."""
    making.llava_folder(folder / "answers", train=6, val=4, test=4)
    tiny.save("llava", folder / "llava")
    return {"checkpoint": str(folder / "llava"), "data_root": str(folder / "answers"), "device": "cpu"}


def _shrink(folder: Path) -> Job:
    from das_gym.adapt.run_commands import shrink as ex
    from das_gym.adapt.shrinking import measuring
    from das_gym.adapt.shrinking import shrink as module
    from das_gym.adapt.shrinking.verifying import Verification

    checked = Verification(3, 0.0, ("with a cache",))
    without_process = patch.object(module, "verify", lambda *_: checked)  # it writes nothing
    run = _run(lambda: ex, without_process, patch.object(measuring, "LATENCY_BLOCKS", 1))
    search = {"agent": "bandit", "evaluations": 4, "reward_examples": 4, "masks_per_turn": 2}
    given = {**answering_in(folder), "skip_num": 1, "search": search}
    training = {"train": {"steps": 2, "save_every": 1}, "control": True}
    return Job(run, ("model.safetensors", "config.json"), {**given, **training}, out="smaller")


def _shrink_compare(folder: Path) -> Job:
    from das_gym.adapt.run_commands import compare as ex

    quick: dict[str, Any] = {"model": "VLM", "task": "answering", "methods": ("random", "block_influence"), "skip_num": 1}
    quick |= {"evaluations": 4, "recovery": {"steps": 2, "save_every": 1}}
    volatile = re.compile(r"settings|run|report|(.*_)?seconds")
    return Job(
        _run(lambda: ex),
        ("compare.json",),
        {**answering_in(folder), **quick},
        volatile=volatile,
        is_whole=lambda run: "rows" in read_json(run / "compare.json"),
    )


def _adapt_compare(folder: Path) -> Job:
    from das_gym.adapt.compare import training
    from das_gym.adapt.run_commands import compare as ex

    rows: dict[str, Any] = {"methods": ("lora",), "learning_rates": (1e-3,), "seeds": 2}
    rows["train"] = {"steps": 2, "batch_size": 4}
    files = ("compare.json", "lora.safetensors")
    volatile = re.compile(r"settings|run|report|rows|(.*_)?seconds|latency|speedup")  # its table has times
    run = _run(lambda: ex, _time_little(training))

    def is_whole(run: Path) -> bool:
        return sum(trial["test"] is not None for trial in read_json(run / "compare.json")["trials"]) == 2

    given = {**_without_supernet(folder), **rows, "test_examples": 4}
    return Job(run, files, given, volatile=volatile, is_whole=is_whole)


def _export(folder: Path) -> Job:
    import numpy as np
    from das_gym.adapt.export.folder import export
    from das_gym.adapt.finetuning import new_subnet
    from das_gym.adapt.subnets import load_subnet, save

    from das_gym.problem.config import ProblemConfig

    problem = ProblemConfig(**world_in(folder))
    subnet = new_subnet(problem, np.array(MASK, dtype=bool))
    save(subnet, folder / "subnet")

    def run(settings: dict[str, Any]) -> None:
        out = Path(settings["runs_dir"]).with_name("exported")
        if not (out / "config.json").is_file():  # as a user would: use it if it exists, else run again
            export(load_subnet(folder / "subnet"), out)
        (Path(settings["runs_dir"]) / "0").mkdir(parents=True, exist_ok=True)

    return Job(run, ("model.safetensors", "config.json", "tokenizer.json"), {}, out="exported")


JOBS: dict[str, Callable[[Path], Job]] = {
    "table_search": _table_search,
    "search": _search,
    "pareto": _pareto,
    "table": _table,
    "supernet": _supernet,
    "adapt": _adapt,
    "das": _das,
    "shrink": _shrink,
    "shrink_compare": _shrink_compare,
    "adapt_compare": _adapt_compare,
    "export": _export,
}
"""By name, what makes a job in a folder."""
