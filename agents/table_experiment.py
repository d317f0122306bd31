"""Score every mask of a problem on the reward and the test split: ground truth for searches, in one file.

python -m agents table with meter_vqa                      writes to runs/<id>/table.npz
python -m agents table with vilt_nlvr2 out=FILE            of another model, on another task, to this file
python -m agents table with meter_vqa reward_examples=500 test_examples=1000
python -m agents table with meter_vqa each=True reward_examples=500 test_examples=250
                                                           with what each example scores, for any reward batch
python -m agents table with data_root=/data/vqav2 supernet=mine.safetensors
python -m agents table with meter_vqa workers=ray  over the workers of a Ray cluster, or of this machine
python -m agents table with resume=3                       continue run 3, which was stopped

`das_gym.tables.table.SubnetTable` reads the file; `gymnasium.make("DAS-METER-VQA-Tabular-v0", table=FILE)` plays on it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from das_gym.agents.settings import TableSettings

from das_gym.commands.progress import Phase, print_estimate, progress
from das_gym.commands.recorded import Run, required_folder
from das_gym.drawing.report import Table
from das_gym.engine.scores import Spending
from das_gym.engine.tree import saved_bytes
from das_gym.files import expand_home, write_json
from das_gym.intervals import spearman
from das_gym.names import format_count
from das_gym.problem.budget import DEFAULT_SKIP_NUM
from das_gym.problem.mask_space import masks_up_to, skipped_names
from das_gym.problem.problem import Problem, load_problem
from das_gym.problem.statistic_inputs import measure_activity, measure_sensitivity
from das_gym.registration import find_environment
from das_gym.tables.build import build_table, table_examples
from das_gym.tables.table import SubnetTable

TABLE = "table.npz"
RECORD = "table.json"
CHECKPOINT = "table_checkpoint.npz"
TIMED_MASKS = 20
"""Number of masks that are scored for the estimate, of all that a table has."""


def phases(settings: TableSettings, problem: Problem) -> list[Phase]:
    """Return the phases of making a table; none if Ray's workers score it."""
    if problem.scoring.workers is not None:
        return []
    examples = table_examples(problem, "reward", settings.reward_examples)
    batch = problem.evaluator.batch_size
    masks = masks_up_to(len(problem.layer_names), settings.max_skipped)
    some = masks[:: max(1, len(masks) // TIMED_MASKS)]
    stages = problem.vlp.stages

    def measure_statistics(count: int) -> None:
        fresh = problem.evaluator.with_empty_caches()  # which has to run the encoders
        measure_activity(fresh, examples[:count])
        measure_sensitivity(fresh, examples[:count])

    pair = examples[:2]
    sensitivity = saved_bytes(lambda: measure_sensitivity(problem.evaluator, pair), problem.vlp.parameters())
    timed = problem.evaluator

    def score(count: int) -> None:
        nonlocal timed
        timed = problem.evaluator.with_empty_caches()
        timed.evaluate_each(some, examples[:count])

    scores = Phase(
        "scores",
        _total(problem, (settings.reward_examples, settings.test_examples)),
        score,
        batch,
        repeats=count_nodes(masks, stages) / count_nodes(some, stages),
        example_bytes=problem.task.passes * problem.walk_bytes,
        kept_bytes=lambda: timed.kept_bytes(),
    )
    rounds = 2 if settings.each else 1  # all examples, then each group of them
    size = sensitivity // len(pair)
    return [
        scores,
        Phase("layer statistics", len(examples), measure_statistics, batch, repeats=rounds, example_bytes=size),
    ]


def count_nodes(masks: np.ndarray, stages: Sequence[Sequence[int]]) -> int:
    """Return the number of nodes in the prefix tree of (m, n_units) bool masks, all stages together."""
    before: list[int] = []
    nodes = 0
    for stage in stages:
        before += stage
        nodes += len(np.unique(masks[:, before], axis=0))
    return nodes


def make_table(settings: TableSettings, run: Run) -> None:
    """Score every mask, write the table to `out`, and print a summary; with `estimate`, print the expected time."""
    problem = load_problem(settings.problem)
    masks_up_to(len(problem.layer_names), settings.max_skipped)  # rejects too many
    if settings.estimate:
        print_estimate(phases(settings, problem))
        return
    folder = required_folder(run)
    out = folder / TABLE if settings.out is None else expand_home(settings.out)
    env_id = find_environment(settings.problem.model, settings.problem.task).id
    counts = (settings.reward_examples, settings.test_examples)
    with progress(_total(problem, counts), "scoring every mask", unit="example") as bar:
        options: dict[str, Any] = {name: getattr(settings, name) for name in ("max_skipped", "each", "latency_batch")}
        table, spent = build_table(problem, env_id, *counts, checkpoint=folder / CHECKPOINT, on_scores=bar.update, **options)
    problem.evaluator.close()
    table.save(out)
    write_json(
        folder / RECORD, {"table": str(out.absolute()), **dataclasses.asdict(table.meta), "spent": dataclasses.asdict(spent)}
    )
    (folder / CHECKPOINT).unlink()
    run.add_artifact(out)
    run.add_artifact(folder / RECORD)
    print_summary(table, spent)
    print(f"table: {out}, {out.stat().st_size / 1000:,.0f} kB")


def _total(problem: Problem, counts: tuple[int | None, int | None]) -> int:
    return sum(len(table_examples(problem, *split)) for split in zip(("reward", "test"), counts, strict=True))


def print_summary(table: SubnetTable, spent: Spending) -> None:
    """Print the scores of the best mask in a table, and the work that building the table took."""
    meta = table.meta
    losses = table.values("loss")
    count = min(DEFAULT_SKIP_NUM, table.n_layers // 2, table.most_skipped)
    best = table.best(skip_num=count)
    print(
        f"{meta.env_id}: {len(table.masks):,} masks, {meta.reward_examples:,} reward, {meta.test_examples:,} test examples"
    )
    masks_table(table, {"full model": table.masks[0], f"best of k={count}": best}, "").print()
    print(f"k={count} skips {', '.join(skipped_names(meta.layer_names, best)) or 'nothing'}")
    agreement = spearman(losses, table.values("loss", "test"))
    print(f"rank correlation of losses between the two splits (Spearman): {agreement:.4f}")
    print(f"{spent.layer_runs:,} layer runs, {spent.macs / 1e12:.3f} T MACs, {spent.seconds:.0f} s")
    if not np.isfinite(losses).all():
        print(f"{format_count(int((~np.isfinite(losses)).sum()), 'mask')} with a non-finite loss")


def masks_table(table: SubnetTable, masks: Mapping[str, np.ndarray], title: str) -> Table:
    """Return the scores of some masks by name, on both splits of a table."""
    scores: list[dict[str, Any]] = [table.describe(mask) for mask in masks.values()]
    metric = table.meta.metric_name.replace("_", " ")
    rows = []
    for split in table.scores:
        rows.append((f"{metric} on the {split} split, %", *(f"{100 * s[f'{split}_metric']:.2f}" for s in scores)))
        rows.append((f"loss on the {split} split, nats", *(f"{s[f'{split}_loss']:.4f}" for s in scores)))
    rows.append(("MACs saved, %", *(f"{100 * s['macs_saved']:.1f}" for s in scores)))
    return Table(("", *masks), tuple(rows), title)
