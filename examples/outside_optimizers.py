"""External optimizers on a table: Optuna, and simulated annealing in twenty lines."""

import numpy as np
import optuna
from das_gym.agents import make_oracle


def by_optuna(oracle, evaluations: int, seed: int) -> None:
    """TPE over one number a layer; the layers with the largest are skipped."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial):
        scores = np.array([trial.suggest_float(f"layer_{i}", 0, 1) for i in range(oracle.space.n_layers)])
        return oracle(oracle.space.top(scores))

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=evaluations)


def by_annealing(oracle, evaluations: int, seed: int) -> None:
    """Simulated annealing: swap a layer, accept what is better, and sometimes what is worse."""
    rng = np.random.default_rng(seed)
    mask = oracle.space.sample(rng)
    reward = oracle(mask)
    for step in range(evaluations - 1):
        other = oracle.space.mutate(mask, 1, rng)
        gain = oracle(other) - reward
        if gain > 0 or rng.random() < np.exp(gain / (0.03 * (1 - step / evaluations))):
            mask = other
            reward += gain


def main(env_id: str = "DAS-METER-VQA-Tabular-v0", evaluations: int = 60, seed: int = 0, skip_num: int = 4) -> float:
    best = -np.inf
    for search in (by_optuna, by_annealing):
        oracle = make_oracle(env_id, {"skip_num": skip_num})
        search(oracle, evaluations, seed)
        skipped, reward = max(oracle.calls, key=lambda entry: entry[1])
        rank = oracle.ranks(np.array([reward]))[0]
        print(f"{search.__name__}: reward {reward:.4f} after {len(oracle.calls)} masks, rank {rank}, skips layers {skipped}")
        best = max(best, reward)
    return best


if __name__ == "__main__":
    main()
