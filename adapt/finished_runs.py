"""Finished runs as `evaluate`, `predict`, `export` and `report` find them, with the settings of these commands.

Everything here is read and checked before torch is imported.
"""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from das_gym.adapt.settings import RANKED_IMAGES, SAVED_DTYPES

from das_gym.commands.commandline import format_command
from das_gym.commands.runs import COMPARISON, RUNS_DIR, PluginSettings, find_run
from das_gym.commands.settings import PositiveInt, choice
from das_gym.files import METADATA_KEY, check_file, check_new_folder, expand_home, explain_damage, read_json
from das_gym.names import check_names
from das_gym.problem.config import ON_BAD_EXAMPLE, check_device, download_hint, setting_path
from das_gym.registration import METRICS, MODELS, TASKS

if TYPE_CHECKING:
    from das_gym.adapt.compare.record import Trial

SHRUNK = "shrink.json"
SUBNET_FILE = "adapter.safetensors"
RECORD = "adapt.json"
JOINT_RECORD = "das.json"
NEW_TOKENS = 128
"""Longest answer that is generated, in tokens."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_TORCH = (2, 11)
"""The exporter of torch 2.9 fixes the batch size of these models, that of 2.6 lacks operators."""


class FinishedRun(NamedTuple):
    """A finished run, read once.

    Attributes:
        model: The adapter file of its model, or the folder of a whole model.
        record: The path of its record; None for a folder that `export` or `shrink` wrote.
        content: What the record holds, or else config.json.
        trial: How the model was trained, for a run of `adapt compare`.
    """

    model: Path
    record: Path | None
    content: Mapping[str, Any]
    trial: "Trial | None" = None

    def problem(self, task: str) -> Mapping[str, Any]:
        """Return its recorded task and data; a model of transformers has the given `task`."""
        with explain_damage(self.record or self.model / "config.json", "make it again"):
            if self.record is None:
                return {"task": self.content[METADATA_KEY]["task"] if METADATA_KEY in self.content else task}
            return dict(self.content["problem"])


@dataclass(frozen=True)
class SubnetSettings(PluginSettings):
    """Settings shared by the commands that take a finished run.

    Attributes:
        run: Id of a finished run of `adapt`, `adapt das` or `adapt compare`, or the folder of one.
        method: Method whose model is used, for a run of `adapt compare`: `lora`, `das_4`, `random_4`, ...
        checkpoint: Model that the run adapted, if it was moved since.
        runs_dir: Folder of all runs.
        trust_remote_code: Whether code in the checkpoint's folder may run, if the run was given that as well.
    """

    run: int | str
    method: str | None = None
    checkpoint: str | None = None
    trust_remote_code: bool = False
    runs_dir: str = RUNS_DIR

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.finished
        if self.checkpoint is not None and not setting_path("checkpoint", self.checkpoint).exists():
            raise FileNotFoundError(f"`checkpoint` does not exist: got {self.checkpoint}. Give the model's new place.")

    @cached_property
    def finished(self) -> FinishedRun:
        """The run that `run` and `method` name, read once; see `find_finished` for errors."""
        return find_finished(self.run, self.runs_dir, self.method)


@dataclass(frozen=True)
class EvaluateSettings(SubnetSettings):
    """The settings of `python -m adapt evaluate`.

    Attributes:
        run: Id of a finished run, the folder of one, or a folder of a transformers model such as `adapt shrink` writes.
        split: Part of the data: `train`, `reward` or `test`. VQAv2 also has `train2014`, `val2014`, `test2015` and
            `test-dev2015`. Models that answer in words also take `questions`, a JSON-lines file in LLaVA's format for
            evaluation.
        data_root: Folder of the data. None uses the run's own.
        task: Task of a folder of a transformers model; runs have their own.
        columns: Columns of image, question and answer of parquet files, separated by commas. None finds them.
        context: Tokens of a window of text, for the task `text`. None uses the run's own, or 512.
        out: JSON file for the predictions. None writes none.
        metric: Score of generated answers, see `das_gym.register_metric`; `evaluate` reports it besides the task's own.
        limit: Number of examples, the first ones of the split. None takes all.
        rank_images: Number of images that retrieval ranks, with all of their texts. None ranks all.
        max_new_tokens: Longest answer in words that `predict` generates, in tokens.
        on_bad_example: What to do with a damaged example: stop with an error, or skip it with a warning.
        device: Device of the model: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
    """

    split: str = "test"
    data_root: str | None = None
    task: str = choice("answering", TASKS, own=True)
    columns: str | None = None
    context: PositiveInt | None = None
    out: str | None = None
    metric: str | None = choice(None, METRICS, own=True)
    limit: PositiveInt | None = None
    rank_images: PositiveInt | None = RANKED_IMAGES
    max_new_tokens: PositiveInt = NEW_TOKENS
    on_bad_example: str = choice("raise", ON_BAD_EXAMPLE)
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.out)
        check_device(self.device)
        data_root = self.data_setting("data_root")
        if data_root is not None and not expand_home(data_root).exists():
            raise FileNotFoundError(f"`data_root` does not exist: got {data_root}. Give the folder of the data.")
        task = self.finished.problem(self.task)["task"]
        if task in TASKS:  # else a plugin is missing, which loading says
            check_names([self.split], TASKS[task].parts, f"split of {task}")

    def data_setting(self, name: str) -> Any:
        """Return `data_root`, `columns` or `context`: as given, or the run's own if neither it nor `data_root` is given."""
        given = getattr(self, name)
        return self.finished.problem(self.task).get(name) if given is None and self.data_root is None else given


@dataclass(frozen=True)
class PredictSettings(EvaluateSettings):
    """The settings of `python -m adapt predict`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None:
            raise ValueError("`out` is missing: `predict` writes the answers to a file. Give out=answers.json.")


@dataclass(frozen=True)
class ExportSettings(SubnetSettings):
    """The settings of `python -m adapt export`.

    Attributes:
        out: New folder to write to.
        dtype: Number format of the weights of a model that answers in words. `auto` is the checkpoint's, or that of the
            training if it has fewer bits.
        onnx: Whether to write model.onnx too, checked with onnxruntime. It needs `pip install 'das_gym[export]'`.
    """

    out: str = field(kw_only=True)
    dtype: str = choice("auto", SAVED_DTYPES)
    onnx: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_new_folder(self.out)
        model = self.finished.problem("").get("model")  # None: a METER or ViLT folder that `export` wrote
        if model is None or model in MODELS:  # else a plug-in is missing, which loading says
            reads_prompts = model is not None and MODELS[model].reads_prompts
            if self.onnx and reads_prompts:
                raise ValueError(f"`onnx` is not supported for generative models: got {model}. Leave it out.")
            if self.dtype != "auto" and not reads_prompts:
                raise ValueError(f"`dtype` is not supported by {model or 'METER and ViLT'}: got {self.dtype}. Leave it out.")
        if self.onnx:
            require_onnx()


@dataclass(frozen=True)
class ReportSettings(PluginSettings):
    """The settings of `report`, whose runs stand before `with`: `report 1 2 with out=both.html`.

    Attributes:
        runs: Ids of runs, or their folders.
        out: HTML file to write. None is report.html in the folder of the run, or report_1_2.html in `runs_dir` for several
            runs.
        runs_dir: Folder of all runs.
    """

    runs: tuple[str, ...] = ()
    out: str | None = None
    runs_dir: str = RUNS_DIR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ValueError("`runs` is missing. Name the runs to report, as in `report 1 2`.")
        _ = self.folders  # raises for a wrong run before torch is imported
        check_file(self.out, may_exist=True)  # as report.html, it can be made again

    @cached_property
    def folders(self) -> list[Path]:
        """The folders of the runs, in the order given; FileNotFoundError for one that does not exist."""
        found = [find_run(self.runs_dir, run) if run.isdecimal() else Path(run) for run in self.runs]
        for folder in found:
            if not folder.is_dir():
                raise FileNotFoundError(f"`runs` names no run: got {folder}, expected an id in {self.runs_dir} or a folder.")
        return found


def find_finished(run: int | str, runs_dir: str, method: str | None = None) -> FinishedRun:
    """Return the run that commands name by its id or folder, with the model of `method` if it is a comparison.

    FileNotFoundError without such a finished run; ValueError for a run of `adapt shrink`, or for `method` of other runs.
    """
    folder = expand_home(str(run))
    if not folder.is_dir() and (hint := download_hint(str(run), "run")):
        raise FileNotFoundError(f"`run` is not a run or a folder: got {run}.{hint}")
    if not folder.is_dir() or str(run).isdecimal():
        folder = find_run(runs_dir, run)
    if (folder / COMPARISON).is_file():
        from das_gym.adapt.compare.record import kept_file, kept_trial

        content = read_json(folder / COMPARISON)
        trial = kept_trial(folder, content, method)
        return FinishedRun(kept_file(folder, trial.variant), folder / COMPARISON, content, trial)
    if method is not None:
        raise ValueError(f"`method` is for runs of `{format_command('adapt compare')}`: got {folder}. Leave it out.")
    record = find_record(folder)
    if record is not None:
        return FinishedRun(folder / SUBNET_FILE, record, read_json(record))
    if (folder / SHRUNK).is_file():
        with explain_damage(folder / SHRUNK, "make it again"):
            out = read_json(folder / SHRUNK)["out"]
        raise ValueError(f"`run` is a run of `{format_command('adapt shrink')}`: got {run}. Give its model, run={out}.")
    content = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "model_type" not in content:  # an unfinished run has a config.json, too
        raise FileNotFoundError(f"`run` is not a finished run: {folder} has no {RECORD} or {JOINT_RECORD}. Resume it.")
    return FinishedRun(folder, None, content)


def find_record(folder: Path, names: Sequence[str] = (RECORD, JOINT_RECORD)) -> Path | None:
    """Return the first of these records that exists in the folder of a run; None if none does."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def require_onnx() -> None:
    """Raise ValueError if a package for the ONNX export is missing, or torch is too old."""
    torch = importlib.metadata.version("torch")
    if tuple(int(part) for part in torch.split(".")[:2]) < ONNX_TORCH:
        oldest = ".".join(map(str, ONNX_TORCH))
        raise ValueError(f"`onnx` needs torch {oldest} or newer: got {torch}. Upgrade it, or leave `onnx` out.")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"`onnx` needs {', '.join(missing)}. Run pip install 'das_gym[export]', or leave `onnx` out.")
