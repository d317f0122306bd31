"""A custom agent: registered by name, used in a search, and compared with random search on a table."""

from das_gym.agents import Agent, compare, register_agent, search


class HillClimber(Agent):
    """Swaps a few skipped layers of the best mask for others; `Agent` remembers rewards, answers, and resumes."""

    def __init__(self, space, seed=None, swaps: int = 1):
        super().__init__(space, seed)
        self.swaps = swaps

    def ask(self, n):
        return self.space.distinct(n, self._draw, self.rng, seen=self.rewards)

    def _draw(self):
        if not self.rewards:
            return self.space.sample(self.rng)
        return self.space.mutate(self.best(), self.swaps, self.rng)


def main(env_id: str = "DAS-METER-VQA-Tabular-v0", evaluations: int = 120, seeds: int = 20) -> float:
    register_agent("hill_climber", HillClimber)
    result = search(env_id, "hill_climber", skip_num=4, evaluations=evaluations)
    print(f"reward {result.reward:.4f}, skips {', '.join(result.skipped_layers)}")
    for each in compare(env_id, ["hill_climber", "random"], seeds, evaluations=evaluations, skip_num=4):
        print(
            f"{each.agent:>12}: mean regret {each.mean_regret():.4f}, found in {each.found_best[:, -1].mean():.0%} of seeds"
        )
    return result.reward


if __name__ == "__main__":
    main()
