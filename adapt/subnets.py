"""Fine-tuned subnets on disk: a folder with `adapter.safetensors`, and a record that says which model it belongs to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from das_gym.adapt.compare.kept import RECORD as COMPARED
from das_gym.adapt.compare.kept import kept_model
from das_gym.adapt.export.loading import is_exported, load_exported
from das_gym.adapt.methods.saving import restore_adaptation

from das_gym.commandline import format_command
from das_gym.config import build, check_names
from das_gym.files import at_home, read_json, write_json
from das_gym.plugins import import_plugins, imported_plugins
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, is_hub_id, recorded_settings
from das_gym.problem.loading import AdaptedModel, load_backbone, new_head, restore, task_class
from das_gym.registration import MODELS, TASKS
from das_gym.runs import PluginSettings, find_run, library_versions
from das_gym.trust import trusted_settings

SUBNET_FILE = "adapter.safetensors"
RECORD = "adapt.json"
JOINT_RECORD = "das.json"
FORMAT = "das_gym adapt 1"

NOT_NEEDED = ("supernet", "data_root")
"""Paths that a fine-tuned subnet loads without."""


def place_of(run: int | str, runs_dir: str, method: str | None = None, seed: int | None = None) -> tuple[Path, Path]:
    """What `load_subnet` takes of a run as commands name it, and the run's folder.

    Args:
        run: Id of a run, or a folder as for `load_subnet`.
        runs_dir: Folder of all runs.
        method: Whose model, of a run of `python -m adapt compare`, see `kept_model`.
        seed: Likewise.

    Raises:
        FileNotFoundError: no such run.
        ValueError: what `kept_model` raises, or a method of a run that compares none.
    """
    folder = at_home(str(run))
    if not folder.is_dir() and is_hub_id(str(run)):
        raise FileNotFoundError(
            f"`run` is not a run or a folder: got {run}. das_gym downloads nothing. Run "
            f"`hf download {run} --local-dir FOLDER`, then give run=FOLDER."
        )
    if not folder.is_dir() or str(run).isdecimal():
        folder = find_run(runs_dir, run)
    if (folder / COMPARED).is_file():
        return kept_model(folder, method, seed), folder
    if method is not None or seed is not None:
        raise ValueError(
            f"method= and seed= choose a model of a run of `{format_command('adapt compare')}`, and {folder} is none"
        )
    return folder, folder


def load_moved(place: Path, device: str, checkpoint: str | None, trust_remote_code: bool) -> AdaptedModel:
    """`load_subnet` of a place, on a device; from `checkpoint` where that is given, since the recorded one was moved."""
    changes: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
    changes |= {"trust_remote_code": True} if trust_remote_code else {}
    return load_subnet(place, device=device, **changes)


def load_subnet(path: str | os.PathLike[str], *, plugins: str | Sequence[str] = (), **changes: Any) -> AdaptedModel:
    """A fine-tuned subnet, its skipped layers removed, in eval mode and in memory of its own.

    Args:
        path: The folder of a run of `python -m adapt` or `python -m adapt das`, or one that `save` wrote; or an adapter
            file in it, such as those that `python -m adapt compare` keeps; or a folder that `python -m adapt export` wrote,
            none of whose code is run.
        plugins: Modules to import first. A record imports none by itself: name those that the run was given, or
            import them.
        **changes: Fields of `ProblemConfig` that are not as recorded, such as `device="cpu"`, or `checkpoint=` where
            that was moved. An exported folder has `device` and `max_text_length` alone.

    Raises:
        TypeError: `path` is no path.
        FileNotFoundError: no record or no adapter file is there, or the recorded checkpoint is gone.
        ValueError: the file holds a supernet, or belongs to another model; or the record names modules that are not
            imported yet, or `trust_remote_code`, which has to be given again.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load_subnet takes the folder of a fine-tuned run, not a {type(path).__name__}")
    import_plugins(plugins)
    path = at_home(path)
    if is_exported(path):
        check_names(changes, ("device", "max_text_length"), "setting")
        return load_exported(path, **changes)
    folder = path if path.is_dir() else path.parent
    file = path if path.suffix == ".safetensors" else folder / SUBNET_FILE
    adaptation = Adaptation.load(file) if file.is_file() else None
    if adaptation is not None and adaptation.mask is None and adaptation.method is None:
        raise ValueError(
            f"{file} holds a supernet, not a subnet; pass it as supernet=, or fine-tune a mask: `{format_command('adapt')}`"
        )
    names = (RECORD, JOINT_RECORD) if adaptation is None or adaptation.method is None else (COMPARED,)
    record = record_in(folder, names)
    if record is None or adaptation is None:
        missing = " or ".join(names) if record is None else file.name
        raise FileNotFoundError(
            f"there is no {missing} in {folder}: give the folder of a run of `{format_command('adapt')}` that ended"
        )
    content = read_json(record)
    check_names(changes, (field.name for field in dataclasses.fields(ProblemConfig)))
    with _named(record):
        recorded, settings = _recorded(content)
        modules = build(PluginSettings, {"plugins": content.get("plugins", ())}).plugins
    recorded = trusted_settings(record, modules, {k: v for k, v in recorded.items() if k not in changes})
    with _named(record, "import the module that registers it (plugins=MODULE), or fine-tune it again"):
        problem = build(ProblemConfig, {**recorded, **changes})
    put_back = restore if adaptation.method is None else restore_adaptation
    subnet = put_back(load_backbone(problem, **settings), adaptation, problem.task, file)
    subnet.head.eval()
    return subnet


def is_plain(folder: Path) -> bool:
    """Whether a folder holds a model of transformers and nothing of ours, as `python -m adapt shrink` leaves it."""
    config = folder / "config.json"
    if is_exported(folder) or record_in(folder) is not None or not config.is_file():
        return False
    content = read_json(config)
    return isinstance(content, dict) and "model_type" in content


def load_plain(folder: Path, device: str, trust_remote_code: bool) -> AdaptedModel:
    """The model of transformers in a folder, to answer in words as it is.

    Raises:
        ValueError, FileNotFoundError: what `das_gym.models.transformers.loading.load_vlm` raises.
    """
    model = next(name for name, entry in MODELS.items() if entry.reads == "prompts")
    name = next(name for name, entry in TASKS.items() if entry.gives == "prompts")
    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    backbone = load_backbone(ProblemConfig(model=model, task=name, checkpoint=str(folder), device=device, **options))
    backbone.vlp.remove_adapters()
    task = task_class(name)(backbone.processor)
    return AdaptedModel(backbone, new_head(backbone, task), task)


@contextmanager
def _named(record: Path, way_out: str = "fine-tune it again") -> Iterator[None]:
    """Name the record in errors of what it holds."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{record} is no record of a subnet ({error}); {way_out}") from error


def _recorded(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and data of a record, and the model's own settings, such as its adapters' widths."""
    problem = dict(record["problem"])
    problem |= {name: None for name in NOT_NEEDED if problem.get(name) and not Path(problem[name]).exists()}
    settings = record.get("model_settings")
    if settings is None:  # records of 0.1.0
        widths = ("bottleneck", "skip_bottleneck") if "pipeline" in record and problem["checkpoint"] else ()
        settings = {name: record["pipeline"][name] for name in widths}
    return problem, dict(settings)


def record_in(folder: Path, names: Sequence[str] = (RECORD, JOINT_RECORD)) -> Path | None:
    """The first of these records that lies in the folder of a run; None where none does."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def recorded_data(folder: Path) -> str | None:
    """The folder of the data that a run's record names, there or not; None for the bundled data, and where no record is."""
    record = record_in(folder, (RECORD, JOINT_RECORD, COMPARED))
    if record is None:
        return None
    with _named(record):
        found = read_json(record)["problem"].get("data_root")
        if not isinstance(found, str | None):
            raise TypeError(f"data_root={found!r}")
        return found


def save(
    subnet: AdaptedModel,
    folder: str | os.PathLike[str],
    info: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    name: str = RECORD,
) -> Path:
    """Write a subnet so that `load_subnet(folder)` gives it back: its adapter file, and then the record.

    Args:
        subnet: As `load_subnet`, `cut_subnet` or fine-tuning gives it.
        folder: Where to; it is made if it is not there.
        info: How it was made, plain JSON values, kept in the adapter file.
        record: What the record says beyond model and data, plain JSON values.
        name: Of the record, `adapt.json` or `das.json`.

    Returns:
        The record's path.

    Raises:
        TypeError: `subnet` is something else.
        ValueError: nothing was pruned, so it is a supernet; or its model was not loaded by `load_backbone`.
    """
    if not isinstance(subnet, AdaptedModel):
        raise TypeError(f"save takes a subnet and a folder, in this order; the first one is a {type(subnet).__name__}")
    backbone, folder = subnet.backbone, at_home(folder)
    if backbone.vlp.pruned_mask is None:
        raise ValueError("no layer was removed from this model, so it is a supernet: write `subnet.adaptation().save(file)`")
    if backbone.config is None:
        raise ValueError(
            "it is not known what this model was loaded from: load it by `das_gym.problem.loading.load_backbone`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    subnet.adaptation(**(info or {})).save(folder / SUBNET_FILE)
    described = {
        "format": FORMAT,
        "problem": recorded_settings(dataclasses.asdict(backbone.config)),
        "model_settings": dict(backbone.settings),
        **(record or {}),
        "plugins": imported_plugins(),
        "versions": library_versions(),
    }
    write_json(folder / name, described)
    return folder / name
