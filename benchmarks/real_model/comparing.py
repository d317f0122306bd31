"""Which layers of the real model can go: the landscape of single layers, and searches for k layers at equal evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents import Budget, MaskSpace, SearchConfig, make_agent
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.loop import run_search

from benchmarks.real_model.prepare import WINDOW
from benchmarks.search.rivals import register_rivals
from das_gym import ProblemConfig, load_problem
from das_gym.drawing.report import markdown_table
from das_gym.problem.statistic_inputs import measure_activity

EVALUATIONS = {3: 87, 6: 120, 9: 120, 15: 120}
"""Number of skipped units to the evaluations of a search. Greedy removal of layers takes 87, 165 and 234."""

MASKS_PER_TURN = 3
"""The paper's. A turn of greedy removal is a whole round."""

RULES = ("last", "before_last", "block_influence", "leave_one_out", "greedy")
SEARCHES = ("bayes", "random", "evopress", "heat_kernel", "quadratic_regression", "bandit", "ppo")
SEEDS = (0, 1, 2)
TEXTS = (("prose", "reward"), ("prose", "test"), ("news", "test"))
SETTINGS = {"bandit": {"learning_rate": 20.0}}


class Scorer:
    """Scores masks of SmolLM2 on texts, each mask once: losses are kept in a file of JSON lines that all searches share.

    Args:
        folder: Of the model, the texts and the file.
        data: The texts, `prose` or `news`.
        split: `reward` or `test`.
        dtype: Of the model.
        skip: `delete`, or `linear` for linear skip adapters.
        units: `layers`, or `sublayers` for attention and MLP by themselves.
    """

    def __init__(
        self, folder: Path, data: str, split: str, dtype: str = "float32", skip: str = "delete", units: str = "layers"
    ) -> None:
        config = ProblemConfig(
            model="VLM",
            task="text",
            checkpoint=str(folder / "smollm2"),
            data_root=str(folder / data),
            dtype=dtype,
            context=WINDOW,
            skip=skip,
            units=units,
        )
        self.config = config
        self.problem = load_problem(config)
        self.examples: Sequence[Any] = list(getattr(self.problem.splits, split))
        self.layers = len(self.problem.layer_names)
        self.file = folder / f"{data}_{split}_{dtype}_{results_name(skip, units)}.jsonl"
        self.known = {entry["mask"]: entry["loss"] for entry in read_lines(self.file)}

    def losses(self, masks: np.ndarray) -> np.ndarray:
        """Return (m,) float64 mean losses, in nats a token, of (m, layers) bool masks."""
        keys = ["".join("01"[bit] for bit in mask) for mask in masks.astype(int)]
        new = [row for row, key in enumerate(keys) if key not in self.known and key not in keys[:row]]
        if new:
            losses = self.problem.evaluator.losses(masks[new], self.examples).tolist()
            for row, loss in zip(new, losses, strict=True):
                self.known[keys[row]] = loss
                append_line(self.file, {"mask": keys[row], "loss": loss})
        return np.array([self.known[key] for key in keys])


def results_name(skip: str, units: str) -> str:
    """Return the suffix of the files of a kind of search: `delete`, `linear`, `delete_sublayers`, ..."""
    return skip if units == "layers" else f"{skip}_{units}"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def append_line(file: Path, entry: dict[str, Any]) -> None:
    """Add an entry to a file of JSON lines."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def run(method: str, skipped: int, seed: int, scorer: Any, influence: np.ndarray) -> tuple[np.ndarray, int]:
    """Run a search; return its answer, (layers,) bool, and the evaluations that it took.

    `influence` are the (layers,) block influences, for ShortGPT.
    """
    if method in ("last", "before_last"):
        mask = np.zeros(scorer.layers, dtype=bool)
        mask[scorer.layers - skipped :] = True
        return np.roll(mask, -(method == "before_last")), 0
    if is_algorithm(method):  # of Stable-Baselines3, which needs the environment
        config = SearchConfig(
            scorer.config.env_id,
            problem=scorer.config,
            agent=method,
            skip_num=skipped,
            evaluations=EVALUATIONS[skipped],
            seed=seed,
            masks_per_turn=MASKS_PER_TURN,
        )
        found = run_search(config, problem=scorer.problem)
        return found.mask, EVALUATIONS[skipped]
    space = MaskSpace(Budget(n_layers=scorer.layers, skip_num=skipped))
    agent = make_agent(method, space, seed, SETTINGS.get(method), {"block_influence_tokens": influence})
    if method == "block_influence":
        return agent.best(), 1
    limit = scorer.layers * skipped if method in RULES else EVALUATIONS[skipped]
    spent = 0
    while spent < limit:
        masks = agent.ask(scorer.layers if method in RULES else min(MASKS_PER_TURN, limit - spent))
        if len(masks) == 0:
            break
        agent.tell(masks, -scorer.losses(masks))
        spent += len(masks)
    return agent.best(), spent


def landscape(folder: Path) -> None:
    """Print the perplexity without each layer, in float32 on the reward texts."""
    scorer = Scorer(folder, "prose", "reward")
    masks = np.concatenate([np.zeros((1, scorer.layers), dtype=bool), np.eye(scorer.layers, dtype=bool)])
    full, *without = np.exp(scorer.losses(masks)).tolist()
    print(f"{len(scorer.examples)} reward texts of {WINDOW} tokens, full model: perplexity {full:.2f}")
    print("without one layer, 0 to 29: " + ", ".join(f"{value:.4g}" for value in without))


def compare(
    folder: Path, skip_numbers: Sequence[int], dtype: str, skip: str, methods: Sequence[str], units: str = "layers"
) -> None:
    """Run the searches that are not done, those that cost little first; print each answer and add it to a file."""
    register_rivals()
    scorer = Scorer(folder, "prose", "reward", dtype, skip, units)
    influence = measure_activity(scorer.problem.evaluator, scorer.examples).block_influence_tokens
    file = folder / f"answers_{results_name(skip, units)}.jsonl"
    done = {(entry["method"], entry["skipped"], entry["seed"]) for entry in read_lines(file)}
    planned = [(method, k, 0) for method in RULES for k in skip_numbers if method in methods]
    planned += [(method, k, seed) for seed in SEEDS for k in skip_numbers for method in SEARCHES if method in methods]
    for method, k, seed in planned:
        if (method, k, seed) in done:
            continue
        mask, spent = run(method, k, seed, scorer, influence)
        entry = {"method": method, "skipped": k, "seed": seed, "evaluations": spent, "layers": np.flatnonzero(mask).tolist()}
        append_line(file, entry)
        print(f"{entry} perplexity {np.exp(scorer.losses(mask[None])[0]):.2f}", flush=True)


def report(folder: Path, skip: str, units: str = "layers") -> None:
    """Print a table of the answers in float32: on the reward texts, held out, and on news, which nothing saw."""
    answers = read_lines(folder / f"answers_{results_name(skip, units)}.jsonl")
    scorers = [Scorer(folder, data, split, skip=skip, units=units) for data, split in TEXTS]
    masks = np.zeros((len(answers) + 1, scorers[0].layers), dtype=bool)
    for mask, answer in zip(masks[1:], answers, strict=True):
        mask[answer["layers"]] = True
    perplexities = np.exp([scorer.losses(masks) for scorer in scorers]).T
    saved = 100 * np.array([scorers[0].problem.costs.macs_saved(mask) for mask in masks])
    cells: dict[tuple[int, str, int], list[int]] = {}
    for row, answer in enumerate(answers, start=1):
        cells.setdefault((answer["skipped"], answer["method"], answer["evaluations"]), []).append(row)
    rows = [["full model", "0", "0", "", "", *map(median_and_range, perplexities[:1].T)]]
    for (k, method, spent), found in sorted(cells.items(), key=lambda cell: (cell[0][0], perplexities[cell[1], 1].mean())):
        rows.append(
            [
                method,
                str(k),
                median_and_range(saved[found]),
                str(spent),
                str(len(found)),
                *map(median_and_range, perplexities[found].T),
            ]
        )
    head = ["method", "skipped", "MACs saved, %", "evaluations", "seeds", *(f"{data}, {split}" for data, split in TEXTS)]
    print(*markdown_table(head, rows), sep="\n")


def median_and_range(values: np.ndarray) -> str:
    """Return a value, or the median of several with the smallest and the largest where they differ."""
    middle = f"{np.median(values):.4g}"
    return middle if values.min() == values.max() else f"{middle} ({values.min():.4g} to {values.max():.4g})"
