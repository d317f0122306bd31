"""Score random masks and keep the best: the environment without any agent of ours."""

import gymnasium
import numpy as np

import das_gym  # noqa: F401 - registers the environments


def main(steps: int = 20, seed: int = 0, **settings) -> float:
    env = gymnasium.make("DAS-METER-VQA-v0", skip_num=4, **settings)
    rng = np.random.default_rng(seed)
    best_reward = -np.inf
    best_mask = None
    for step in range(steps):
        env.reset(seed=None if step else seed)
        mask = np.zeros(12, dtype=np.int8)
        mask[rng.choice(12, 4, replace=False)] = 1
        _, reward, _, _, info = env.step(mask)
        if reward > best_reward:
            best_reward = reward
            best_mask = mask
            print(f"reward {reward:.4f}, accuracy {info['metric']:.3f}, MACs saved {info['macs_saved']:.1%}")
    names = env.get_wrapper_attr("layer_names")
    print("skips", [name for name, skipped in zip(names, best_mask, strict=True) if skipped])
    return best_reward


if __name__ == "__main__":
    main()
