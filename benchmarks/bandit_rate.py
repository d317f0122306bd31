"""Which learning rate the bandit wants in a search of a few hundred masks: many seeds on the bundled task's masks of k = 4.

    python -m benchmarks.bandit_rate

Scores every mask once (about two minutes on two cores), then searches on those scores: the reward split to search, the test
split to report.
"""

from __future__ import annotations

import itertools

import numpy as np

from agents.bandit import Bandit
from das_gym.envs.skip_env import SkipEnv

RATES = (1.0, 3.0, 10.0, 20.0, 50.0)
SEEDS = 60
EVALUATIONS = 240
MASKS_PER_TURN = 3


def main() -> None:
    """Print, for each rate, what searches end at."""
    scorer = SkipEnv().scorer
    masks = np.array([mask for mask in itertools.product((False, True), repeat=12) if sum(mask) == 4])
    rewards = np.exp(-scorer.problem.evaluator.losses(masks, scorer.fixed_examples))
    accuracy = scorer.problem.evaluator.evaluate(masks, scorer.problem.splits.test).metrics
    row = {mask.tobytes(): index for index, mask in enumerate(masks)}
    median, best = 100 * np.median(accuracy), 100 * accuracy.max()
    print(f"{len(masks)} masks: median test accuracy {median:.2f} %, best {best:.2f} %")
    for rate in RATES:
        found = []
        for seed in range(SEEDS):
            agent = Bandit(12, 4, seed, learning_rate=rate)
            for _ in range(EVALUATIONS // MASKS_PER_TURN):
                asked = agent.ask(MASKS_PER_TURN)
                agent.tell(asked, rewards[[row[mask.tobytes()] for mask in asked]])
            found.append(accuracy[row[agent.best().tobytes()]])
        below = np.mean(np.array(found) <= np.median(accuracy))
        mean, worst = 100 * np.mean(found), 100 * min(found)
        print(f"rate {rate:4g}: mean {mean:.2f} %, worst {worst:.2f} %, at the median or below {below:.0%}")


if __name__ == "__main__":
    main()
