"""Regret on problems never seen, against the number of problems that a policy was trained on (as Procgen, arXiv 1912.01588).

    python -m benchmarks.training_problems --folder policies                10 to all problems of the bundled suite, 2 seeds
    python -m benchmarks.training_problems --folder policies --problems 50 0 --seeds 5 --steps 50000      0 = all of them

Policies are trained by `python -m agents policy` and kept in the folder: what lies there is not trained again. Regret is a
share of what there is to gain: 0 = the optimum, 1 = a random order. On `test`, its interval is that of
`benchmarks.generalise`, of the mean over seeds; the spread behind it is that of the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from das_gym.agents.policy.network import UnitNetworks
from das_gym.agents.policy.training import PolicySettings, train_policy

from benchmarks.generalise import by_policy, by_rule, interval, regrets
from das_gym.drawing.markdown import markdown_table
from das_gym.tables.suite import Suite, load_suite

RULE = "leave_one_out"


def policy(settings: PolicySettings) -> UnitNetworks:
    """The one that its settings name, trained where it is not there yet."""
    path = Path(settings.out)
    if not path.is_file():
        UnitNetworks([train_policy(settings, log=lambda _: None)]).save(path)
        print(f"{path.name} is trained", flush=True)
    return UnitNetworks.load(path)


def regret(network: UnitNetworks, suite: Suite) -> np.ndarray:
    """(P,) of the policy's first masks."""
    return regrets(suite, by_policy(suite, network))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the curve."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_problems",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--suite", help="folder of a suite; the bundled one by default")
    parser.add_argument("--problems", type=int, nargs="+", default=[10, 30, 100, 300, 0], help="0 = all of them")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=PolicySettings.steps)
    parser.add_argument("--statistics", nargs="+", default=PolicySettings.statistics, help="what policies read")
    options = parser.parse_args(arguments)
    statistics = tuple(options.statistics)
    shown = tuple(dict.fromkeys((*statistics, RULE)))
    splits = {name: load_suite(options.suite, name, statistics=shown) for name in ("train", "test")}
    models = np.array([problem.source.name for problem in splits["test"].problems])
    rows = []
    for count in options.problems:
        networks = [
            policy(
                PolicySettings(
                    str(options.folder / f"policy-{count or 'all'}-{seed}.safetensors"),
                    suite=options.suite,
                    steps=options.steps,
                    seed=seed,
                    statistics=statistics,
                    problems=count or None,
                )
            )
            for seed in range(options.seeds)
        ]
        on = {name: np.array([regret(network, suite) for network in networks]) for name, suite in splits.items()}
        low, high = interval(on["test"].mean(axis=0), models)
        seeds = on["test"].mean(axis=1)
        spread = f"{seeds.min():.3f} to {seeds.max():.3f}"
        name = str(count or len(splits["train"].problems))
        rows.append((name, f"{on['train'].mean():.3f}", f"{seeds.mean():.3f}", f"{low:.3f} to {high:.3f}", spread))
    rule = [float(regrets(suite, by_rule(suite, RULE)).mean()) for suite in splits.values()]
    rows.append((RULE, f"{rule[0]:.3f}", f"{rule[1]:.3f}", "", ""))
    heads = ("training problems", "regret on all of `train`", "regret on `test`", "95 % interval", f"{options.seeds} seeds")
    print("\n".join(markdown_table(heads, rows)))


if __name__ == "__main__":
    main()
