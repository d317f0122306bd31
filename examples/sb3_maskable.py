"""sb3-contrib's MaskablePPO on the environment: one layer a step, never one that is skipped already."""

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks

import das_gym  # noqa: F401 - registers the environments
from das_gym.envs.sb3_vec_env import make_sb3_vec_env


def main(env_id: str = "DAS-METER-VQA-v0", total_timesteps: int = 1024, **env_kwargs) -> float:
    # A budget in MACs: an episode ends as soon as 12 % are saved, however many layers that takes.
    vec_env = make_sb3_vec_env(env_id, n_envs=4, seed=0, action="sequence", macs_saved=0.12, **env_kwargs)
    model = MaskablePPO("MlpPolicy", vec_env, n_steps=16, batch_size=64, gamma=1.0, learning_rate=3e-3, seed=0)
    model.learn(total_timesteps)
    observations = vec_env.reset()
    done = [False]
    while not done[0]:
        actions, _ = model.predict(observations, deterministic=True, action_masks=get_action_masks(vec_env))
        observations, rewards, done, infos = vec_env.step(actions)
    print(f"saves {infos[0]['macs_saved']:.1%} of the MACs with {infos[0]['n_skipped']} layers, reward {rewards[0]:.4f}")
    return float(rewards[0])


if __name__ == "__main__":
    main()
