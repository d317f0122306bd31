"""Select the mask of a command: a given mask, the result of a search, a point of a Pareto front, or a new search."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.search_experiment import search_in_run
from das_gym.agents.searching.record import FRONT, RECORD, SearchResult, best_rows
from das_gym.agents.settings import SearchConfig

from das_gym.commands.commandline import format_command
from das_gym.commands.runs import find_run
from das_gym.commands.settings import build
from das_gym.commands.trust import trusted_settings
from das_gym.files import explain_damage, read_json
from das_gym.names import escape_control_chars
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem
from das_gym.processes import run_on_main_process
from das_gym.registration import CHECKPOINT_TABLES, LIVE_ENV, MODELS, env_entry


@dataclass(frozen=True)
class Choice:
    """A (n_layers,) bool mask, with the problem that it was searched or given for.

    `remark` names the point of a Pareto front. `others` are other masks within the budget of the search, the best first.
    `fingerprint` is that of the model, or of the table's, that was searched; empty if there was no search.
    """

    mask: np.ndarray
    problem: ProblemConfig
    remark: str = ""
    others: tuple[np.ndarray, ...] = ()
    fingerprint: str = ""

    def check_model(self, base: str) -> None:
        """Warn if a loaded model with the fingerprint `base` is not the searched one.

        A bundled model that was loaded since no other was named raises a ValueError.
        """
        problem = self.problem
        if self.fingerprint in ("", base):
            return
        differ = f"the searched model has the fingerprint {self.fingerprint}, this one {base}"
        if problem.checkpoint is None and problem.dtype is None and problem.image_size is None:
            raise ValueError(
                f"`checkpoint` is missing: {differ}, that of the bundled {problem.model}. Give checkpoint=, and "
                "data_root= and supernet= if it was searched with them, or the mask itself as mask=[...]."
            )
        warnings.warn(f"{differ}: another model, number format or image size. The mask may not suit it.", stacklevel=2)


def choose(settings: Any) -> Choice | None:
    """Return the mask that the settings of a command choose; None if they leave it to a search in the command's own run."""
    if settings.mask is not None:
        return Choice(np.array(settings.mask, dtype=bool), settings.problem)
    if settings.search_run is None:
        return None
    default = type(settings)().problem  # a command's own default, such as shrink's `answering`, is not given
    given = {name: value for name, value in settings.problem.changed.items() if value != getattr(default, name)}
    return choice_from_run(settings.runs_dir, settings.search_run, given, settings.point)


def choice_from_run(runs_dir: str, run: int, given: Mapping[str, Any], point: int | None = None) -> Choice:
    """Return the mask that a search found, or a point of a Pareto front; `given` overrides fields of its `ProblemConfig`."""
    folder = find_run(runs_dir, run)
    path, command = (folder / RECORD, "agents") if point is None else (folder / FRONT, "agents pareto")
    if point is None and not path.is_file() and (folder / FRONT).is_file():
        raise ValueError(f"run {run} is a Pareto front: give the number of one of its points too, as in point=3")
    if not path.is_file():
        what = "search" if point is None else "front"
        resume = format_command(command, f"resume={run}")
        raise FileNotFoundError(f"{path} does not exist: run {run} is not a finished {what} (`{resume}` continues one)")
    if point is None:
        result = SearchResult.load(path)
        return replace(search_choice(result, _recorded_problem(vars(result), path, given)), fingerprint=result.fingerprint)
    front = read_front(path)
    if point >= len(front["points"]):
        raise ValueError(f"point={point}: the front of run {run} has points 0..{len(front['points']) - 1}; use one of them")
    chosen = front["points"][point]
    remark = (
        f"point {point} of run {run}: {100 * chosen['saved']:.1f} % of the {front['cost']} saved, "
        f"loss {chosen['loss']:.4f}, skips {', '.join(chosen['skipped_layers']) or 'nothing'}"
    )
    problem = _recorded_problem(front, path, given)
    fingerprint = str(front.get("fingerprint") or front.get("table_model", ""))  # its name in 0.2.0
    return Choice(np.array(chosen["mask"], dtype=bool), problem, remark, fingerprint=fingerprint)


def print_remark(choice: Choice) -> None:
    """Print what a user has to know about a choice, if anything."""
    if choice.remark:
        print(escape_control_chars(choice.remark))


def read_front(path: Path) -> dict[str, Any]:
    """Return the record of a Pareto front, `front.json`; ValueError if it is damaged."""
    record = read_json(path)
    with explain_damage(path, f"run `{format_command('agents pareto')}` again"):
        points = record["points"]
        masks = np.array([each["mask"] for each in points])
        numbers = np.array([[each["saved"], each["loss"]] for each in points], dtype=float)
        if masks.ndim != 2 or not np.isin(masks, (0, 1)).all() or not np.isfinite(numbers).all():
            raise ValueError("a mask is not of 0 and 1, or a number is not finite")
        names_are_strings = all(isinstance(name, str) for each in points for name in each["skipped_layers"])
        have_names = all(isinstance(each, dict) for each in (record["env_kwargs"], record.get("table_settings", {})))
        if not (names_are_strings and isinstance(record["env_id"], str) and have_names):
            raise TypeError("the environment, or names of layers, are of another type")
    return dict(record)


def _recorded_problem(record: Mapping[str, Any], path: Path, given: Mapping[str, Any]) -> ProblemConfig:
    """Return the model and data of a record; `given` overrides them."""
    known = {each.name for each in fields(ProblemConfig)}
    recorded = {**record.get("table_settings", {}), **record["env_kwargs"]}
    if any(name.endswith(".attention") for name in record.get("layer_names", ())):  # the bundled table has no settings
        recorded = {"units": "sublayers", **recorded}
    recorded = {name: value for name, value in recorded.items() if name in known and name not in given}
    # A record may come from anyone: what it would import or run has to be named again.
    trusted = trusted_settings(path, record.get("plugins", ()), recorded)
    if (entry := env_entry(record["env_id"])) is not None:
        _, folder = CHECKPOINT_TABLES.get(record["env_id"], (entry.id, ""))
        named = {"checkpoint": folder} if folder in MODELS[entry.model].named else {}
        if record["env_id"] in CHECKPOINT_TABLES and not {**named, **trusted, **given}.get("checkpoint"):
            raise ValueError(
                f"`checkpoint` is missing: {record['env_id']} is a table of a model that is not bundled. Give its folder."
            )
        return build(ProblemConfig, {"model": entry.model, "task": entry.task, **named, **trusted, **given})
    if record["env_id"] == LIVE_ENV:
        raise ValueError(f"{path} is of a model in memory: give mask=[...] with checkpoint=, data_root= and task=")
    raise ValueError(
        f"{path} is of {record['env_id']}, which is not registered: import the module that registers its model and task "
        "(plugins=<module>, as the search did), or give mask=[...] with model= and task="
    )


def scored_problem(search: SearchConfig, problem: Problem | None) -> Problem | None:
    """Return the loaded problem if it scores the masks of a search; None if a table does, or another model or other data."""
    if problem is None or search.env_id != search.problem.env_id or search.env_kwargs.keys() & vars(search.problem).keys():
        return None
    return problem if problem.backbone.origin.config == search.problem else None


def search_first(
    config: SearchConfig, run: Any, folder: Path, problem: Problem | None, prefix: str = "search."
) -> SearchResult:
    """Return the result of a search in a folder of a command's run, on all processes; the main one searches.

    A search that has ended there is not repeated. `problem` is the command's own, if it is loaded. Metrics that are logged
    have names that begin with `prefix`.
    """
    problem = scored_problem(config, problem)

    return run_on_main_process(lambda: search_in_run(config, run, folder, problem, prefix))


def search_choice(result: SearchResult, problem: ProblemConfig) -> Choice:
    """Return the mask that a search of a problem found."""
    seen = [np.array(row["mask"], dtype=bool) for row in best_rows(result.history, result.env_kwargs)]
    others = tuple(other for other in seen if (other != result.mask).any())
    return Choice(result.mask, problem, others=others, fingerprint=result.fingerprint)
