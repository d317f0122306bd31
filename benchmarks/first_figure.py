"""Draw README's figure: test accuracy against MACs of the subnets that agents choose, on METER-mini's table.

    python -m benchmarks.first_figure       docs/assets/score_against_macs.png, benchmarks/records/first_figure.json
    python -m benchmarks.first_figure --seeds 2 --out FOLDER

Every agent has the same number of evaluations at each budget, a least share of the MACs to save, and answers with the best
mask that it scored, by reward. The table knows the best mask of each budget. Scores are of the supernet, before fine-tuning.
Half a minute of one core.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.comparing.comparison import run_agent
from das_gym.agents.comparing.oracle import TableOracle

from benchmarks.harness import make_parser
from das_gym.drawing.charts import new_figure, save_figure
from das_gym.files import write_json

ENV = "DAS-METER-VQA-Tabular-v0"
BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Least shares of the MACs to save."""

EVALUATIONS, MASKS_PER_TURN = 40, 3
AGENTS = ("bayes", "random", "leave_one_out", "bandit")
STYLES = {
    "optimum": ("best reward of all masks (table)", "#1b1b1b", "-"),
    "bayes": ("bayes", "#0072b2", "o"),
    "random": ("random search", "#b34700", "s"),
    "leave_one_out": ("leave-one-out", "#7b3294", "^"),
    "bandit": ("bandit (the paper's)", "#00704f", "D"),
}
"""Label, color and marker of each. Every color has a contrast ratio of at least 4.5 to white."""

Point = dict[str, float]


def front_points(oracle: TableOracle, masks: np.ndarray) -> Point:
    """Return mean MACs and mean test accuracy of (m, n_layers) masks, in % of the baseline and in %."""
    macs = 100 * (1 - oracle.table.macs_saved[oracle.table.index(masks)])
    accuracy = 100 * oracle.test_metrics(masks)
    return {"macs": round(float(macs.mean()), 2), "accuracy": round(float(accuracy.mean()), 2)}


def measure(seeds: Sequence[int]) -> dict[str, list[Point]]:
    """Return the points of each agent, of the optimum, and of the full model."""
    found: dict[str, list[Point]] = {name: [] for name in STYLES}
    for saved in BUDGETS:
        oracle = TableOracle(ENV, {"macs_saved": saved})
        found["optimum"].append(front_points(oracle, oracle.table.best("exp_neg_loss", macs_saved=saved)[None]))
        for agent in AGENTS:
            result = run_agent(oracle, agent, seeds, EVALUATIONS, MASKS_PER_TURN, {})
            found[agent].append(front_points(oracle, result.answers))
    found["full model"] = [front_points(oracle, np.zeros((1, oracle.space.n_layers), dtype=bool))]
    return found


def draw(found: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draw the points, on white, so that a dark page shows them as well."""
    figure = new_figure(5.6, 4.0)
    axes: Any = figure.add_subplot()
    full = found["full model"][0]
    axes.plot(full["macs"], full["accuracy"], "*", color="#1b1b1b", markersize=14, label="full model, with adapters")
    for name, (label, color, marker) in STYLES.items():
        macs = [point["macs"] for point in found[name]]
        accuracy = [point["accuracy"] for point in found[name]]
        line = marker if name == "optimum" else f"{marker}-"
        axes.plot(macs, accuracy, line, color=color, linewidth=2 if name == "optimum" else 1, label=label)
    axes.invert_xaxis()
    label_axes(
        axes,
        "METER-mini (1.2 M parameters) on questions about shapes",
        "MACs of an example, % of the model without adapters",
        "accuracy on the test split, %",
    )
    save_figure(figure, path)


def label_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Give axes a title, the names of what is drawn along x and y, a grid and a legend."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, draw and record."""
    parser = make_parser("first_figure", __doc__)
    parser.add_argument("--seeds", type=int, default=20, help="searches of each agent at each budget")
    parser.add_argument("--out", type=Path, help="folder of both files")
    given = parser.parse_args(arguments)
    root = Path(__file__).parents[1]
    found = measure(range(given.seeds))
    draw(found, (given.out or root / "docs" / "assets") / "score_against_macs.png")
    write_json((given.out or root / "benchmarks" / "records") / "first_figure.json", found)
    for name, points in found.items():
        print(name, *(f"{each['macs']:g}:{each['accuracy']:g}" for each in points))


if __name__ == "__main__":
    main()
