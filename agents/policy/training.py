"""Train a policy on the problems of a suite, whose tables hold the reward of every mask.

python -m agents policy with out=policy.safetensors                the bundled suite's `train`
python -m agents policy with out=FILE steps=2000 seed=3 suite=FOLDER
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from das_gym.agents.policy.network import READS, PolicyEnsemble, PolicyInput, PolicyNetwork
from torch import Tensor

from das_gym.commands.runs import PluginSettings
from das_gym.commands.settings import choice
from das_gym.problem.budget import Masks
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, MAX_UNITS, Suite, load_suite

TEMPERATURE = 0.1
"""Of the softmax of scaled rewards that a policy learns, where 0 is the random mean and 1 the optimum."""

BATCH = 16
"""Tables with a budget in a gradient step; each has several groups of examples."""

TRUST = 0.25
"""What learned corrections are multiplied by at the end: models of other kinds differ from those of `train`.

It is the best of 0, 0.25, ..., 1 on `train`, where each of its four kinds of models was left out of the training in turn.
"""

LEARNING_RATE = 1e-2
"""The highest one; it falls to 0 on a cosine."""

WARMUP = 20


@dataclass(frozen=True)
class PolicySettings(PluginSettings):
    """The settings of `python -m agents policy`.

    Attributes:
        out: File to write, such as policy.safetensors.
        suite: Folder of a suite. None uses the bundled one.
        steps: Gradient steps of each member.
        members: Number of networks to train, with seeds from `seed` on. They decide together.
        seed: Random seed.
        relatives: Problems to add for each model: the same model without one to three of its layers.
        budgets: Kinds of budgets of the problems: a number of layers, or a share of MACs, latency, parameters or memory.
    """

    out: str
    suite: str | None = None
    steps: int = 400
    members: int = 8
    seed: int = 0
    relatives: int = 6
    budgets: tuple[str, ...] = choice(DEFAULT_BUDGETS, BUDGET_KINDS)

    def __post_init__(self) -> None:
        for name in ("members", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is out of range: got {getattr(self, name)}, expected at least 1")


class Example(NamedTuple):
    """Problems that share a table and a budget: what a policy reads, and the softmax of the rewards, (problems, masks)."""

    given: PolicyInput
    wanted: Tensor


def suite_inputs(suite: Suite) -> Iterator[tuple[np.ndarray, PolicyInput]]:
    """Yield the problems' numbers and the policy's input, for each table and budget of a suite."""
    groups: dict[int, list[int]] = {}
    for number, problem in enumerate(suite.problems):
        groups.setdefault(id(problem.budget), []).append(number)
    for numbers in groups.values():
        problems = [suite.problems[number] for number in numbers]
        masks = problems[0].table.masks
        statistics = [{name: problem.table.statistic(name) for name in READS} for problem in problems]
        yield np.array(numbers), PolicyInput.of(statistics, masks[problems[0].budget.is_kept_by(masks)])


@torch.no_grad()
def suite_masks(policy: PolicyEnsemble | PolicyNetwork, suite: Suite) -> Masks:
    """Return the policy's masks on the problems of a suite, (P, MAX_UNITS) bool."""
    found = np.zeros((len(suite.problems), MAX_UNITS), bool)
    for numbers, given in suite_inputs(suite):
        masks = given.skipped[policy(given).argmax(dim=1)].bool().numpy()
        found[numbers, : masks.shape[1]] = masks
    return found


def load_examples(suite: Suite) -> list[Example]:
    """Return the training examples of a suite."""
    found = []
    for numbers, given in suite_inputs(suite):
        problems = [suite.problems[number] for number in numbers]
        kept = problems[0].budget.is_kept_by(problems[0].table.masks)
        gains = [(p.rewards[kept] - p.random_mean) / (p.optimum - p.random_mean) for p in problems]
        found.append(Example(given, torch.tensor(np.array(gains) / TEMPERATURE).softmax(dim=1).float()))
    return found


def mean_scaled(policy: PolicyEnsemble | PolicyNetwork, suite: Suite) -> float:
    """Return the mean reward of the policy's masks on the problems, scaled: 0 = random, 1 = the optimum."""
    return float(suite.scaled[suite.rows(np.arange(len(suite.problems)), suite_masks(policy, suite))].mean())


def train_member(examples: list[Example], steps: int, seed: int) -> PolicyNetwork:
    """Train one network by the cross-entropy with the softmax of the rewards of all masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PolicyNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    rng, queue = np.random.default_rng(seed), list[int]()
    for _ in range(steps):
        while len(queue) < BATCH:  # each example once before any comes again
            queue += rng.permutation(len(examples)).tolist()
        batch = [examples[queue.pop()] for _ in range(BATCH)]
        loss = -torch.stack([(one.wanted * network(one.given)).sum() for one in batch]).sum()
        optimizer.zero_grad()
        (loss / sum(len(one.wanted) for one in batch)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        for parameter in (*network.unit.parameters(), *network.pair[-1].parameters()):
            parameter.mul_(TRUST)
    return network


def train_policy(settings: PolicySettings, log: Callable[[str], object] = print) -> PolicyEnsemble:
    """Train the members one after another; `log` gets lines on the mean scaled reward on `valid`, which chooses nothing."""
    suite = load_suite(settings.suite, "train", relatives=settings.relatives, seed=settings.seed, budgets=settings.budgets)
    valid = load_suite(settings.suite, "valid", budgets=settings.budgets)
    examples, started = load_examples(suite), time.perf_counter()

    members = list[PolicyNetwork]()
    for place in range(settings.members):
        members.append(train_member(examples, settings.steps, settings.seed + place))
        score = mean_scaled(PolicyEnsemble(members).eval(), valid)
        log(f"{place + 1} of {settings.members} members, {time.perf_counter() - started:.0f} s: valid {score:.3f}")
    return PolicyEnsemble(members).eval()


def main(settings: PolicySettings) -> None:
    """Train a policy and write it to a file."""
    train_policy(settings).save(settings.out)
    print(f"policy: {Path(settings.out).absolute()}")
