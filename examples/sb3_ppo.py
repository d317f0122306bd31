"""Stable-Baselines3's PPO on the environment: `scores` always keep the budget, and short rollouts mean many updates."""

from stable_baselines3 import PPO

import das_gym  # noqa: F401 - registers the environments
from das_gym.envs.sb3_vec_env import make_sb3_vec_env


def main(env_id: str = "DAS-METER-VQA-v0", total_timesteps: int = 4096, **env_kwargs) -> float:
    # An episode is one step: 16 environments and n_steps=4 learn from 64 masks at a time.
    vec_env = make_sb3_vec_env(env_id, n_envs=16, seed=0, action="scores", skip_num=4, **env_kwargs)
    model = PPO("MlpPolicy", vec_env, n_steps=4, batch_size=64, learning_rate=1e-3, seed=0)
    model.learn(total_timesteps)
    scores, _ = model.predict(vec_env.reset(), deterministic=True)
    _, rewards, _, infos = vec_env.step(scores)
    print(f"skips {infos[0]['n_skipped']} layers, reward {rewards[0]:.4f}, saves {infos[0]['macs_saved']:.1%} of the MACs")
    return float(rewards[0])


if __name__ == "__main__":
    main()
