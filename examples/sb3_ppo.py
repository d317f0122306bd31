"""Stable-Baselines3's PPO on the environment, as on any other."""

import gymnasium
from stable_baselines3 import PPO

import das_gym  # noqa: F401 - registers the environments


def main(total_timesteps: int = 256, reward_examples: int = 100) -> float:
    # Without a budget of its own PPO may skip any number of layers; with skip_num=4 it is penalised until it skips four.
    env = gymnasium.make("DAS-METER-VQA-v0", skip_num=4, reward_examples=reward_examples)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, verbose=0)
    model.learn(total_timesteps)
    observation, _ = env.reset(seed=0)
    mask, _ = model.predict(observation, deterministic=True)
    _, reward, _, _, info = env.step(mask)
    print(f"skips {info['n_skipped']} layers, reward {reward:.4f}, feasible {info['feasible']}")
    return reward


if __name__ == "__main__":
    main()
