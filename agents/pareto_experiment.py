"""Search the whole front once: for every budget the mask of least loss.

    python -m agents pareto with vlm_answering                      400 masks of the bundled model, MACs against loss
    python -m agents pareto with vilt_nlvr2_table evaluations=200   on a table, which knows how much of the front is found
    python -m agents pareto with vlm_answering checkpoint=DIR data_root=DIR dtype=float32
    python -m agents pareto with resume=3                           continue run 3, which was stopped

A run is kept in runs/<id>/: front.json holds the points of the front and every mask that was scored, front.png draws them.
`python -m adapt with search_run=<id> point=3` and `python -m adapt shrink with search_run=<id> point=3` use a point.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.search_experiment import print_next_command, search_phases
from das_gym.agents.searching.loop import check_search, open_for_search, run_turns
from das_gym.agents.searching.record import FRONT, Row, bind_folder, with_costs
from das_gym.agents.searching.scorer import ENV_ID_HINT
from das_gym.agents.settings import COST_SETTINGS, ParetoSettings

from das_gym.commands.progress import print_estimate, progress
from das_gym.commands.recorded import Run, run_folder
from das_gym.commands.runs import library_versions
from das_gym.commands.trust import imported_plugins
from das_gym.drawing.charts import new_figure, save_figure
from das_gym.drawing.report import Table
from das_gym.envs.scoring import Scorer
from das_gym.envs.tabular_env import TableScorer
from das_gym.files import write_json
from das_gym.names import format_count
from das_gym.problem.budget import Floats, MaskCost, Masks
from das_gym.problem.config import recorded_settings
from das_gym.problem.mask_space import front_rows, hypervolume, reference_point, skipped_names
from das_gym.registration import MODELS, env_entry

FIGURE = "front.png"
MAX_NUMBERS = 15
"""Points of a front that are numbered in the figure: more numbers overlap."""


def front_indices(masks: Masks, saved: Floats, losses: Floats, keeps_a_layer: bool) -> np.ndarray:
    """Return the rows of the Pareto front of (m, n_layers) scored masks, the smallest saving first: points 0, 1, ...

    With `keeps_a_layer`, a mask of all layers is no point, since nothing would be left of the model.
    """
    allowed = np.flatnonzero(~masks.all(axis=1)) if keeps_a_layer else np.arange(len(masks))
    return allowed[front_rows(saved[allowed], losses[allowed])]


def hypervolume_share(scorer: Scorer, cost: MaskCost, saved: Floats, losses: Floats) -> float | None:
    """Return the fraction of the true front's hypervolume that the scored masks cover; None without a table."""
    if not isinstance(scorer, TableScorer):
        return None
    every_saved = cost.saved(scorer.table.masks)
    every_loss = scorer.table.values("loss", scorer.split)
    reference = reference_point(every_saved, every_loss)
    return hypervolume(saved, losses, reference) / hypervolume(every_saved, every_loss, reference)


def search_front(settings: ParetoSettings, run: Run) -> float | None:
    """Search, draw, print and save; return the hypervolume of the front, or None for an estimate."""
    entry = env_entry(settings.env_id)
    if entry is None:
        raise ValueError(f"`env_id` is not an environment of das_gym: got {settings.env_id}, {ENV_ID_HINT}")
    config = settings.search
    check_search(config)
    if settings.estimate:
        print_estimate(search_phases(open_for_search(config), config))
        return None
    folder = run_folder(run)
    config = with_costs(config, folder)
    with progress(config.evaluations, "searching the front", unit="mask") as bar, closing(open_for_search(config)) as scorer:
        if folder is not None:
            bind_folder(folder, config, scorer)
        _, turns = run_turns(config, scorer, folder, lambda turn: bar.update(len(turn.masks)))
        cost = scorer.cost_of(COST_SETTINGS[settings.cost])
    rows = [row for turn in turns for row in turn.rows]
    masks = np.array([row["mask"] for row in rows], dtype=bool)
    losses = np.array([np.inf if row["loss"] is None else row["loss"] for row in rows])
    saved = cost.saved(masks)
    # In other models than those that read prompts, adapters replace skipped layers.
    front = front_indices(masks, saved, losses, keeps_a_layer=MODELS[entry.model].reads_prompts)
    reference = reference_point(saved, losses)
    env_kwargs = {**settings.problem.env_kwargs, **settings.env_kwargs}
    if settings.reward_examples is not None:
        env_kwargs = {"reward_examples": settings.reward_examples, **env_kwargs}
    record: dict[str, Any] = {
        "format": 1,
        "settings": {name: getattr(settings, name) for name in ("cost", "evaluations", "seed", "masks_per_turn")},
        "env_id": settings.env_id,
        "env_kwargs": recorded_settings(env_kwargs),
        **scorer.origin,
        "cost": settings.cost,
        "hypervolume_share": hypervolume_share(scorer, cost, saved, losses),
        "layer_names": list(scorer.layer_names),
        "evaluations": len(rows),
        "points": front_points([rows[index] for index in front], saved[front], scorer.layer_names),
        "reference": dict(zip(("saved", "loss"), reference, strict=True)),
        "hypervolume": hypervolume(saved[front], losses[front], reference),
        "searched": {
            "masks": masks.astype(int).tolist(),
            "losses": [row["loss"] for row in rows],
            "saved": saved.tolist(),
            "metrics": [row["metric"] for row in rows],
        },
        "plugins": imported_plugins(),
        "versions": library_versions(),
    }
    front_table(record, scorer.metric_name).print()
    if folder is not None:
        write_json(folder / FRONT, record)
        title = f"{settings.env_id}, {format_count(len(rows), 'mask')} scored"
        plot_front(folder / FIGURE, front, saved, losses, settings.cost, title)
        for name in (FRONT, FIGURE):
            run.add_artifact(folder / name)
        print(f"record: {folder / FRONT}\nfigure: {folder / FIGURE}")
        print_next_command(settings.env_id, folder, "point=...")
    return float(record["hypervolume"])


def front_points(rows: Sequence[Row], saved: Floats, layer_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the points of a front as plain values, given the rows of its masks and the shares that they save."""
    points = []
    for number, (row, share) in enumerate(zip(rows, saved.tolist(), strict=True)):
        point = {"point": number, "mask": row["mask"], "skipped_layers": skipped_names(layer_names, row["mask"])}
        points.append({**point, "saved": share, "loss": row["loss"], "metric": row["metric"]})
    return points


def front_table(record: Mapping[str, Any], metric: str) -> Table:
    """Return the table of the points in the record of a front; its notes say how many masks were scored."""
    rows = []
    for point in record["points"]:
        score = "-" if point["metric"] is None else f"{100 * point['metric']:.1f} %"  # None: it is not finite
        numbers = (f"{100 * point['saved']:.1f} %", f"{point['loss']:.4f}", score)
        rows.append((str(point["point"]), *numbers, str(sum(point["mask"]))))
    columns = ("point", f"{record['cost']} saved", "loss", metric.replace("_", " "), "layers skipped")
    notes = [f"Scored: {format_count(record['evaluations'], 'mask')}."]
    if record["hypervolume_share"] is not None:
        share = f"{100 * record['hypervolume_share']:.2f} %"
        notes.append(f"The search found {share} of the true front's hypervolume (by the table).")
    title = f"{record['env_id']}: the front, seed {record['settings']['seed']}"
    return Table(columns, tuple(rows), title, tuple(notes))


def plot_front(path: Path, front: np.ndarray, saved: Floats, losses: Floats, cost: str, title: str) -> None:
    """Plot (m,) losses against shares of the cost saved as a PNG, with the numbered points of the rows `front`."""
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    percent = 100 * saved
    losses = np.where(np.isfinite(losses), losses, np.nan)  # NaN is not drawn
    axes.scatter(percent, losses, s=8, color="0.7", label="scored", zorder=1)
    axes.step(percent[front], losses[front], where="pre", color="C0", linewidth=2.0, zorder=3)
    axes.scatter(percent[front], losses[front], s=22, color="C0", label="front, numbered", zorder=4)
    axes.scatter(percent[:1], losses[:1], s=90, color="black", marker="s", label="full model", zorder=3)
    if np.nanmin(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"{cost} saved, %. Front: no other mask is both cheaper and better")
    axes.set_ylabel("loss (reward split), nats")
    axes.legend(frameon=False)
    axes.set_title(title)
    for point in range(0, len(front), -(-len(front) // MAX_NUMBERS)):
        place = (percent[front[point]], losses[front[point]])
        axes.annotate(str(point), place, xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8)
    save_figure(figure, path)
