"""Measure the first mask of a policy on unseen problems, compared with simple rules.

    python -m benchmarks.generalise                              the bundled policy on the bundled suite's `test`
    python -m benchmarks.generalise --policies a b c             several policies, such as of different seeds
    python -m benchmarks.generalise --search 40 --seeds 3        and `bayes` initialized with it on 40 of the problems
    python -m benchmarks.generalise --budgets latency            on those of measured latency

Regret is a share of the possible gain: 0 = the optimum, 1 = skipping in a random order. Intervals are 95 %, of a
bootstrap over models and then over their problems.

Masks are scored only for statistics: `leave_one_out` takes as many as there are units, `next_interaction` twice and
`run_interaction` three times as many. `greedy with neighbours` is the rule that the policy starts from: it reads what the
policy reads, and skips, one after another, what costs least given what is already skipped. `least with its neighbours` is
the mask of all that costs least in the same sense, which `policy_bayes` uses as its prior.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.agents.ask_tell.base import make_agent
from das_gym.agents.compare.oracle import SuiteOracle
from das_gym.agents.policy.agent import bundled_policy
from das_gym.agents.policy.choosing import suite_masks
from das_gym.agents.policy.hinted import NeighbourCosts
from das_gym.agents.policy.network import NEIGHBOURS, PolicyConfig, UnitNetwork, UnitNetworks
from torch import nn

from benchmarks.machine import describe_machine
from das_gym.drawing.table import markdown_table
from das_gym.files import write_json
from das_gym.intervals import RESAMPLES
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.statistics import masks_needed
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, MAX_UNITS, Suite, SuiteProblem, load_suite

RULES = ("block_influence_tokens", "block_influence_pooled", "residual_norm", "angular", "leave_one_out")
"""Rules of the field, which skip where a statistic is lowest."""

GREEDY_RULE = "greedy with neighbours"
"""The rule that an untrained policy is."""

LEAST = "least with its neighbours"
"""The mask of all that costs least by that rule."""

RANKER_STEPS = 400


def regrets(suite: Suite, masks: np.ndarray) -> np.ndarray:
    """(P,) regret of a mask for every problem, as a share of what there is to gain."""
    which = np.arange(len(suite.problems))
    raw = suite.raw[suite.rows(which, masks)]
    return (suite.optima - raw) / (suite.optima - suite.random_means)


def by_scores(suite: Suite, scores: np.ndarray) -> np.ndarray:
    """(P, MAX_UNITS) masks of the units with the highest of (P, MAX_UNITS) scores, as agents give them.

    Under a budget by cost they keep again what it does not need.
    """
    found = np.zeros((len(suite.problems), MAX_UNITS), bool)
    for row, problem in enumerate(suite.problems):
        n = problem.table.n_layers
        found[row, :n] = MaskSpace(problem.budget).top(scores[row, :n])
    return found


def by_policy(suite: Suite, network: UnitNetwork | UnitNetworks) -> np.ndarray:
    """(P, MAX_UNITS) masks of a policy, as agents give them."""
    return by_scores(suite, suite_masks(network, suite, np.arange(len(suite.problems))).astype(float))


def by_rule(suite: Suite, name: str) -> np.ndarray:
    """(P, MAX_UNITS) masks of the units where a statistic is lowest."""
    return by_scores(suite, -suite.observed[:, :, suite.statistics.index(name)])


def least(suite: Suite) -> np.ndarray:
    """(P, MAX_UNITS) allowed masks with the least cost, estimated from neighbours."""
    found = np.zeros((len(suite.problems), MAX_UNITS), bool)
    for row, problem in enumerate(suite.problems):
        masks = problem.table.masks[problem.budget.is_kept_by(problem.table.masks)]
        costs = NeighbourCosts({name: problem.table.statistic(name) for name in NEIGHBOURS})
        found[row, : problem.table.n_layers] = masks[costs(masks).argmin()]
    return found


def unit_effects(problem: SuiteProblem) -> np.ndarray:
    """(n,) what skipping each unit does to the scaled reward, by a linear fit over the masks that keep the budget."""
    kept = problem.budget.is_kept_by(problem.table.masks)
    masks, values = problem.table.masks[kept], problem.scaled(problem.rewards[kept])
    columns = np.concatenate((masks, np.ones((len(masks), 1))), axis=1)
    effects: np.ndarray = np.linalg.lstsq(columns, values, rcond=None)[0][:-1]
    return effects - effects.mean()


def features(suite: Suite, names: Sequence[str]) -> np.ndarray:
    """(P, MAX_UNITS, n) what a ranker reads of each unit alone: statistics as the policy reads them, and the goals."""
    there = torch.from_numpy(suite.units).float()[..., None]
    columns = [suite.statistics.index(name) for name in names]
    parts = UnitNetwork.encode(torch.from_numpy(suite.observed[:, :, columns]), there, there.sum(dim=1, keepdim=True))
    goals = np.repeat(suite.goals[:, None], MAX_UNITS, axis=1)
    return np.concatenate((*(part.numpy() for part in parts), goals), axis=2)


def ranker(train: Suite, test: Suite, names: Sequence[str]) -> np.ndarray:
    """(P, MAX_UNITS) masks of a small network that was taught each unit's effect on the training problems, unit by unit."""
    torch.manual_seed(0)
    read = torch.from_numpy(features(train, names)[train.units]).float()
    wanted = torch.from_numpy(np.concatenate([unit_effects(problem) for problem in train.problems])).float()
    network = nn.Sequential(nn.Linear(read.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    for _ in range(RANKER_STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(read).squeeze(1), wanted).backward()
        optimizer.step()
    with torch.no_grad():
        scores = network(torch.from_numpy(features(test, names)).float()).squeeze(2).numpy()
    return by_scores(test, scores)


def fixed(train: Suite, test: Suite) -> np.ndarray:
    """(P, MAX_UNITS) masks of the best fixed order: units are ranked by position (stream, depth) alone."""
    places = [train.statistics.index(name) for name in ("stream", "depth")]
    effects = np.concatenate([unit_effects(problem) for problem in train.problems])
    known = train.observed[train.units][:, places]
    scores = np.zeros(test.units.shape)
    for problem, unit in np.argwhere(test.units):
        stream, depth = test.observed[problem, unit, places]
        near = (known[:, 0] == stream) & (np.abs(known[:, 1] - depth) <= max(0.08, np.abs(known[:, 1] - depth).min() + 1e-6))
        scores[problem, unit] = effects[near].mean()
    return by_scores(test, scores)


def interval(values: np.ndarray, models: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, resampling models and then the problems of each."""
    rng, names = np.random.default_rng(0), np.unique(models)
    groups = [values[models == name] for name in names]
    means = []
    for _ in range(RESAMPLES):
        drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        means.append(np.concatenate([g[rng.integers(len(g), size=len(g))] for g in drawn]).mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def measure(
    split: str, suite: str | None, policies: Sequence[Path], budgets: Sequence[str] = DEFAULT_BUDGETS
) -> tuple[Suite, dict[str, np.ndarray]]:
    """The problems, and (P,) regrets by method; those of several policies are averaged problem by problem."""
    networks = [UnitNetworks.load(path) for path in policies]
    names = tuple(dict.fromkeys((*RULES, *NEIGHBOURS, *(n for network in networks for n in network.config.statistics))))
    train, test = (load_suite(suite, each, statistics=names, budgets=budgets) for each in ("train", split))
    found = {"policy": np.mean([regrets(test, by_policy(test, network)) for network in networks], axis=0)}
    found |= {name: regrets(test, by_rule(test, name)) for name in RULES}
    found[GREEDY_RULE] = regrets(test, by_policy(test, UnitNetworks.untrained(PolicyConfig(NEIGHBOURS))))
    found[LEAST] = regrets(test, least(test))
    found["ranker, unit by unit"] = regrets(test, ranker(train, test, networks[0].config.statistics))
    found["fixed order of places"] = regrets(test, fixed(train, test))
    return test, found | {"random order": np.ones(len(test.problems))}


def table(test: Suite, found: dict[str, np.ndarray], kept: Callable[[SuiteProblem], bool]) -> list[str]:
    """A Markdown table of mean regrets over some of the problems."""
    some = np.array([kept(problem) for problem in test.problems])
    models = np.array([problem.source.name for problem in test.problems])[some]
    rows = []
    for name, values in sorted(found.items(), key=lambda item: float(item[1][some].mean())):
        low, high = interval(values[some], models)
        share = 100 * float((values[some] < 1e-9).mean())
        mean, median = float(values[some].mean()), float(np.median(values[some]))
        rows.append((name, f"{mean:.3f}", f"{low:.3f} to {high:.3f}", f"{median:.3f}", f"{share:.0f} %"))
    return markdown_table(("method", "mean regret", "95 % interval", "median", "optimum found"), rows)


def kind_of(problem: SuiteProblem) -> str:
    """Return the origin of a problem's model and its task: `llava-sublayers-answering`."""
    source = problem.source
    made = re.fullmatch(r"(?:train|valid|test)-\d+-(.+)", source.name)
    return made[1] if made else f"{source.model.lower()}-{source.task}"


def verdict(found: dict[str, np.ndarray]) -> str:
    """Compare the policy's regret with the best published rule and with the two rules that read the same statistics."""
    best = min(RULES, key=lambda name: float(found[name].mean()))
    shares = [f"{100 * float(found['policy'].mean() / found[name].mean()):.0f} %" for name in (best, GREEDY_RULE, LEAST)]
    own = f"{shares[1]} of that of `{GREEDY_RULE}`, {shares[2]} of that of `{LEAST}`"
    return f"The policy's regret is {shares[0]} of that of the best rule, {best}, {own}."


def members_text(test: Suite, policies: Sequence[Path]) -> str:
    """Mean regrets of the members of the policies, each deciding alone."""
    members = [member for path in policies for member in UnitNetworks.load(path).members]
    alone = [f"{regrets(test, by_policy(test, member)).mean():.3f}" for member in members]
    return f"Its members alone: {', '.join(alone)}."


def searches(problems: Sequence[SuiteProblem], seeds: int, evaluations: int, policy: Path) -> dict[str, Any]:
    """Evaluations until `bayes` and `policy_bayes` are at the optimum (`evaluations` + 1 where they are not), by problem."""
    used: dict[str, list[list[int]]] = {"bayes": [], "policy_bayes": []}
    read = UnitNetworks.load(policy).config.statistics
    for problem in problems:
        statistics = SuiteOracle(problem, read).statistics
        for name, counts in used.items():
            settings = {"policy": str(policy)} if name == "policy_bayes" else {}
            counts.append([until_best(problem, name, seed, evaluations, settings, statistics) for seed in range(seeds)])
    return {name: np.array(counts) for name, counts in used.items()}


def searches_text(
    problems: Sequence[SuiteProblem], used: dict[str, np.ndarray], evaluations: int, policy: Path
) -> list[str]:
    """What came of them, and of `bayes` where it may score as many masks as the policy's statistics take."""
    lines = []
    for name, counts in used.items():
        share = 100 * float((counts <= evaluations).mean())
        means = f"median {np.median(counts):.0f}, mean {counts.mean():.1f}"
        lines.append(f"{name}: {means}, found within {evaluations}: {share:.0f} %")
    read = UnitNetworks.load(policy).config.statistics
    needed = np.array([masks_needed(read, problem.table.n_layers) for problem in problems])
    found = 100 * float((used["bayes"] <= np.minimum(needed, evaluations)[:, None]).mean())
    taken = f"The policy's statistics take {needed.min()} to {needed.max()} masks"
    return [*lines, f"{taken}: within as many, bayes alone has found {found:.0f} % of the optima."]


def until_best(
    problem: SuiteProblem, name: str, seed: int, evaluations: int, settings: dict[str, Any], statistics: dict[str, Any]
) -> int:
    """Evaluations, one mask at a time, until the optimum is found."""
    agent = make_agent(name, MaskSpace(problem.budget), seed, settings, statistics)
    for used in range(1, evaluations + 1):
        masks = agent.ask(1)
        rewards = problem.rewards[problem.table.rows(masks)]
        if len(masks) == 0 or rewards[0] >= problem.optimum:
            return used
        agent.tell(masks, rewards)
    return evaluations + 1


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generalise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", help="folder of a suite; the bundled one by default")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--budgets", nargs="+", default=DEFAULT_BUDGETS, choices=BUDGET_KINDS)
    parser.add_argument("--policies", type=Path, nargs="+", help="files of policies; the bundled one by default")
    parser.add_argument("--search", type=int, default=0, help="problems to search with bayes, too")
    parser.add_argument("--seeds", type=int, default=3, help="of those searches")
    parser.add_argument("--evaluations", type=int, default=60, help="of those searches, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    policies = options.policies or [bundled_policy()]
    test, found = measure(options.split, options.suite, policies, options.budgets)
    record: dict[str, Any] = {"machine": describe_machine(), "policies": len(policies), "split": options.split}
    record["regret"] = {
        name: dict(zip([p.name for p in test.problems], v.tolist(), strict=True)) for name, v in found.items()
    }
    print(f"{len(test.problems)} problems of `{options.split}`, {len(policies)} policies\n")
    print("\n".join([*table(test, found, lambda problem: True), "", verdict(found)]))
    print(members_text(test, policies))
    for kind, count in sorted(Counter(map(kind_of, test.problems)).items()):
        print(f"\n{kind}, {count} problems:\n")
        print("\n".join(table(test, found, lambda problem: kind_of(problem) == kind)))  # noqa: B023
    if options.search:
        order = np.random.default_rng(0).permutation(len(test.problems))[: options.search]
        some = [test.problems[place] for place in order]
        used = searches(some, options.seeds, options.evaluations, policies[0])
        print(f"\nEvaluations until the optimum: {len(some)} problems, {options.seeds} seeds\n")
        print("\n".join(searches_text(some, used, options.evaluations, policies[0])))
        record["searches"] = {name: counts.tolist() for name, counts in used.items()}
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
