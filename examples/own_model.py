"""A custom model: transformers' BridgeTower, whose encoders feed every cross-modal layer."""

import sys
import tempfile
from pathlib import Path

import gymnasium
import torch
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.supernet import train_supernet
from transformers import BridgeTowerModel

from das_gym import VLP, ModelEntry, ProblemConfig, register_model
from das_gym.models.adapters import SkipAdapter
from das_gym.models.base import Layer, SkippableLayer, State, no_memo
from das_gym.models.inputs import Processor, find_tokenizer
from das_gym.models.meter.inputs import meter_transform  # CLIP's pixels, which BridgeTower reads too


class BridgeTower(VLP):
    tunable = ("skip_adapter", "cross_modal_text_pooler", "cross_modal_image_pooler")

    def __init__(self, bridge, bottleneck):
        super().__init__()
        self.bridge = bridge
        self.depth = bridge.config.num_hidden_layers
        width = bridge.config.hidden_size
        self.layers = tuple(Layer(f"{s}.{i}", s, i, "cross-modal") for s in ("text", "image") for i in range(self.depth))
        self.feature_size = 2 * width
        parts = [*bridge.cross_modal_text_layers, *bridge.cross_modal_image_layers]
        bridge.cross_modal_text_layers = bridge.cross_modal_image_layers = None  # prune takes them from one place
        self.parts = torch.nn.ModuleList(SkippableLayer(part, SkipAdapter(width, bottleneck)) for part in parts)

    def make_processor(self, folder, max_text_length=None):
        text = self.bridge.config.text_config
        image = self.bridge.config.vision_config
        tokenizer = find_tokenizer(folder, text.vocab_size, pad=1, first=0, last=2)
        longest = min(max_text_length or 50, text.max_position_embeddings - 2)
        return Processor(tokenizer, meter_transform, image.image_size, image.patch_size, longest)

    def text_stream(self, batch):  # what each stage reads of the encoder, side by side
        text = self.bridge.text_model
        types = self.bridge.token_type_embeddings.weight
        hidden = text.embeddings(input_ids=batch["input_ids"])
        real = batch["attention_mask"][:, None, None].bool()
        outputs = [hidden := layer(hidden, additive(real, hidden)) for layer in text.encoder.layer][-self.depth :]
        parts = [self.bridge._apply_text_transform(output, i) + types[0] for i, output in enumerate(outputs)]
        return torch.cat([self.bridge.cross_modal_text_layernorm(parts[0]), *parts[1:]], dim=-1), real

    def image_stream(self, batch):
        visual = self.bridge.vision_model.visual
        types = self.bridge.token_type_embeddings.weight
        hidden = visual.forward_pre(batch["image"])
        outputs = [visual.forward_post(hidden := layer(hidden)) for layer in visual.transformer.resblocks][-self.depth :]
        parts = [self.bridge._apply_image_transform(output, i) + types[1] for i, output in enumerate(outputs)]
        return torch.cat([self.bridge.cross_modal_image_layernorm(parts[0]), *parts[1:]], dim=-1), None

    def embed(self, encoded):
        towers = {stream: hidden.chunk(self.depth, dim=-1) for stream, hidden in encoded.hidden.items()}
        extras = {"towers": towers, "padding": additive(encoded.attend["text"], encoded.hidden["text"])}
        return State({stream: parts[0] for stream, parts in towers.items()}, encoded.attend, extras)

    def skippable_layer(self, index):
        return self.parts[index]

    def run_layer(self, index, state, skipped, memo=no_memo, pooled_only=False):
        stream = self.layers[index].stream
        stage = self.layers[index].stage
        x = dict(state.hidden)
        if stage:
            links = {"text": self.bridge.cross_modal_text_link_tower, "image": self.bridge.cross_modal_image_link_tower}
            x = {s: links[s][stage - 1](state.extras["towers"][s][stage], hidden, None) for s, hidden in x.items()}
        module = self.parts[index].module_for(skipped)
        own = x[stream]
        other = x["image" if stream == "text" else "text"]
        masks = {"attention_mask" if stream == "text" else "encoder_attention_mask": state.extras["padding"]}
        return (module(own) if skipped else module(own, other, **masks)[0])[:, : 1 if pooled_only else None]

    def pool(self, state):
        return self.bridge.get_cls_features(state.hidden["text"], state.hidden["image"])


def additive(real, hidden):
    return None if real is None else torch.zeros_like(real, dtype=hidden.dtype).masked_fill(~real, -1e9)


def load(path, generator=None, skip_bottleneck=None):
    if generator is not None:
        torch.manual_seed(generator.initial_seed())  # of the adapters
    bridge = BridgeTowerModel.from_pretrained(path, attn_implementation="eager", local_files_only=True)
    return BridgeTower(bridge, skip_bottleneck or bridge.config.hidden_size // 8).eval()


def main(checkpoint, steps=300, reward_examples=100) -> float:
    register_model(ModelEntry("BridgeTower", vlp=BridgeTower, load=load))
    problem = ProblemConfig(model="BridgeTower", checkpoint=str(checkpoint))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"skip_num": 4, "reward_examples": reward_examples, "checkpoint": str(checkpoint)}
        supernet = train_supernet(SupernetConfig(steps=steps), problem, Path(folder) / "supernet.safetensors")
        env = gymnasium.make("DAS-BridgeTower-VQA-v0", supernet=str(supernet), **settings)
    rewards = []
    for number in range(5):
        env.reset(seed=None if number else 0)
        rewards.append(float(env.step(env.unwrapped.np_random.permutation([1] * 4 + [0] * 8))[1]))
    return max(rewards)


if __name__ == "__main__":
    print(f"the best reward of 5 masks: {main(sys.argv[1]):.4f}")
