"""Tiny random checkpoints of transformers' vision-language models, complete with processor files, made on the spot."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LAYERS = 4
TOWER_LAYERS = 3
WIDTH = 32
SIDE = 32
"""Pixels of an image's side, where a model has a fixed one."""

WORDS = "how many circles are there what colour is the square red green blue is it true user assistant answer 0 1 2"
SPECIAL = [
    *("<pad>", "<s>", "</s>", "<image>", "<video>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"),
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<|image|>", "<|python_tag|>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
]

TEMPLATE = """{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}\
{% for c in m.content %}{% if c.type == 'image' %}MARK{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def tokenizer(**names: str) -> t.PreTrainedTokenizerFast:
    """A byte-level tokenizer with every model's marks; `names` are what transformers calls some of them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([WORDS], trainer)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return t.PreTrainedTokenizerFast(tokenizer_object=inner, **marks, extra_special_tokens=names)


VOCABULARY = 512
"""Tokens that the models have room for: more than the tokenizer has."""

SQUARE = {"height": SIDE, "width": SIDE}


def _id(token: str) -> int:
    return SPECIAL.index(token)


def text(**more: Any) -> dict[str, Any]:
    """Settings that decoders have in common."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
    return sizes | heads | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | more


def tower(**more: Any) -> dict[str, Any]:
    """Settings that vision towers have in common."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": TOWER_LAYERS, "num_attention_heads": 2}
    return sizes | {"image_size": SIDE, "patch_size": 8} | more


MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _llama() -> tuple[Any, Any]:
    return t.LlamaForCausalLM(t.LlamaConfig(**text())), tokenizer()


def _with_template(processor: Any, mark: str) -> Any:
    processor.chat_template = TEMPLATE.replace("MARK", mark)
    return processor


def _clip_images(**more: Any) -> Any:
    size = {"shortest_edge": SIDE}
    return t.CLIPImageProcessor(size=size, crop_size=SQUARE, **more)


LLAVA = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
GRID = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def llava_of(decoder: Any = None, vision_layers: int = TOWER_LAYERS, **more: Any) -> tuple[Any, Any]:
    """LLaVA on a decoder of a configuration; None is Llama's."""
    parts = {"vision_config": t.CLIPVisionConfig(**tower(num_hidden_layers=vision_layers))}
    parts["text_config"] = decoder or t.LlamaConfig(**text())
    config = t.LlavaConfig(**parts, image_token_index=_id("<image>"), **more)
    processor = t.LlavaProcessor(_clip_images(), tokenizer(image_token="<image>"), **LLAVA)
    return t.LlavaForConditionalGeneration(config), _with_template(processor, "<image>")


def _llava_next() -> tuple[Any, Any]:
    parts = {"vision_config": t.CLIPVisionConfig(**tower()), "text_config": t.LlamaConfig(**text())}
    config = t.LlavaNextConfig(**parts, image_token_index=_id("<image>"), image_grid_pinpoints=GRID)
    images = t.LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=GRID)
    processor = t.LlavaNextProcessor(images, tokenizer(image_token="<image>"), **LLAVA)
    return t.LlavaNextForConditionalGeneration(config), _with_template(processor, "<image>")


def _llava_onevision() -> tuple[Any, Any]:
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=t.Qwen2Config(**_without(text(), "head_dim")),
        image_token_id=_id("<image>"),
        video_token_id=_id("<video>"),
        image_grid_pinpoints=GRID,
    )
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=GRID),
        tokenizer(image_token="<image>", video_token="<video>"),
        t.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return t.LlavaOnevisionForConditionalGeneration(config), _with_template(processor, "<image>")


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


IDEFICS_MARKS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


LONGEST = {"longest_edge": SIDE}


def _smolvlm() -> tuple[Any, Any]:
    parts = {"vision_config": t.SmolVLMVisionConfig(**tower()), "text_config": t.LlamaConfig(**text())}
    config = t.SmolVLMConfig(**parts, image_token_id=_id("<image>"), scale_factor=2)
    images = t.SmolVLMImageProcessor(size=LONGEST, max_image_size=LONGEST, do_image_splitting=False)
    videos = t.SmolVLMVideoProcessor(size=LONGEST, max_image_size=LONGEST)
    processor = t.SmolVLMProcessor(images, tokenizer(**IDEFICS_MARKS), videos, image_seq_len=4)
    return t.SmolVLMForConditionalGeneration(config), _with_template(processor, "<image>")


def _idefics3() -> tuple[Any, Any]:
    parts = {"vision_config": t.Idefics3VisionConfig(**tower()).to_dict(), "text_config": t.LlamaConfig(**text())}
    config = t.Idefics3Config(**parts, image_token_id=_id("<image>"), scale_factor=2)
    images = t.Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size=LONGEST)
    processor = t.Idefics3Processor(images, tokenizer(**IDEFICS_MARKS), image_seq_len=4)
    return t.Idefics3ForConditionalGeneration(config), _with_template(processor, "<image>")


QWEN_MARKS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


QWEN_IDS = {
    "image_token_id": _id("<|image_pad|>"),
    "video_token_id": _id("<|video_pad|>"),
    "vision_start_token_id": _id("<|vision_start|>"),
    "vision_end_token_id": _id("<|vision_end|>"),
}
QWEN_SIZE = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
QWEN_IMAGES = {"size": QWEN_SIZE, "patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
QWEN_TOWER = {"depth": TOWER_LAYERS, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2}


def _qwen(version: str, vision: dict[str, Any], decoder: dict[str, Any], videos: str) -> tuple[Any, Any]:
    config = getattr(t, f"{version}Config")(vision_config=QWEN_TOWER | vision, text_config=decoder, **QWEN_IDS)
    processors = t.Qwen2VLImageProcessor(**QWEN_IMAGES), tokenizer(**QWEN_MARKS), getattr(t, videos)(**QWEN_IMAGES)
    processor = getattr(t, f"{version}Processor")(*processors)
    return getattr(t, f"{version}ForConditionalGeneration")(config), _with_template(processor, QWEN_IMAGE)


def _qwen2_vl() -> tuple[Any, Any]:
    vision = {"embed_dim": 24, "hidden_size": WIDTH, "mlp_ratio": 2}
    return _qwen("Qwen2VL", vision, _without(text(rope_parameters=MROPE), "head_dim"), "Qwen2VLVideoProcessor")


def _qwen2_5_vl() -> tuple[Any, Any]:
    vision = {"hidden_size": 24, "out_hidden_size": WIDTH, "intermediate_size": 32}
    vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
    return _qwen("Qwen2_5_VL", vision, _without(text(rope_parameters=MROPE), "head_dim"), "Qwen2VLVideoProcessor")


def _qwen3_vl() -> tuple[Any, Any]:
    vision = {"hidden_size": 24, "out_hidden_size": WIDTH, "intermediate_size": 32}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return _qwen("Qwen3VL", vision, text(rope_parameters=MROPE), "Qwen3VLVideoProcessor")


def _paligemma() -> tuple[Any, Any]:
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**tower(vision_use_head=False, projection_dim=WIDTH)),
        text_config=t.GemmaConfig(**text()),
        image_token_index=_id("<image>"),
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    images = t.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    return t.PaliGemmaForConditionalGeneration(config), t.PaliGemmaProcessor(images, tokenizer(image_token="<image>"))


def _gemma3() -> tuple[Any, Any]:
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=t.Gemma3TextConfig(**text(sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2)),
        mm_tokens_per_image=4,
        boi_token_index=_id("<start_of_image>"),
        eoi_token_index=_id("<end_of_image>"),
        image_token_index=_id("<image_soft_token>"),
    )
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    images = t.Gemma3ImageProcessor(size=SQUARE)
    processor = t.Gemma3Processor(images, tokenizer(**marks), image_seq_length=4)
    return t.Gemma3ForConditionalGeneration(config), _with_template(processor, "<start_of_image>")


def _internvl() -> tuple[Any, Any]:
    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**tower(image_size=[SIDE, SIDE], patch_size=[8, 8])),
        text_config=t.Qwen2Config(**_without(text(), "head_dim")),
        image_token_id=_id("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    marks = {"start_image_token": "<img>", "end_image_token": "</img>"}
    words = tokenizer(**marks, context_image_token="<IMG_CONTEXT>", video_token="<video>")
    images, videos = t.GotOcr2ImageProcessor(size=SQUARE), t.InternVLVideoProcessor(size=SQUARE)
    processor = t.InternVLProcessor(images, words, videos, image_seq_length=4)
    return t.InternVLForConditionalGeneration(config), _with_template(processor, "<IMG_CONTEXT>\n")


def _mllama() -> tuple[Any, Any]:
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "image_size": SIDE, "patch_size": 8, "vision_output_dim": 48, "max_num_tiles": 2}
    vision |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = t.MllamaConfig(
        vision_config=vision,
        text_config=_without(text(cross_attention_layers=[1], rope_parameters=rope), "head_dim"),
        image_token_index=_id("<|image|>"),
    )
    images = t.MllamaImageProcessor(size=SQUARE, max_image_tiles=2)
    processor = t.MllamaProcessor(images, tokenizer(image_token="<|image|>"))
    return t.MllamaForConditionalGeneration(config), _with_template(processor, "<|image|>")


def _blip_2() -> tuple[Any, Any]:
    former = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": LAYERS}
    decoder |= {"num_attention_heads": 4, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 256}
    config = t.Blip2Config(
        vision_config=t.Blip2VisionConfig(**tower()),
        qformer_config=t.Blip2QFormerConfig(**former, encoder_hidden_size=24),
        text_config=t.OPTConfig(**decoder),
        num_query_tokens=4,
        image_token_index=_id("<image>"),
    )
    images = t.BlipImageProcessor(size=SQUARE)
    return t.Blip2ForConditionalGeneration(config), t.Blip2Processor(images, tokenizer(), num_query_tokens=4)


def _lfm2_vl() -> tuple[Any, Any]:
    """Layers of convolutions between layers of attention, and no norm called `norm`."""
    kinds = ["conv", "full_attention"] * 2
    config = t.Lfm2VlConfig(
        vision_config=t.Siglip2VisionConfig(**_without(tower(num_patches=16, vision_use_head=False), "image_size")),
        text_config=t.Lfm2Config(**_without(text(layer_types=kinds, block_multiple_of=8), "head_dim")),
        image_token_id=_id("<image>"),
        projector_hidden_size=40,
        downsample_factor=2,
    )
    sizes = {"tile_size": SIDE, "encoder_patch_size": 8, "downsample_factor": 2, "max_num_patches": 64}
    images = t.Lfm2VlImageProcessor(**sizes, min_image_tokens=2, max_image_tokens=16, do_image_splitting=False)
    marks = {"image_token": "<image>", "image_start_token": "<img>", "image_end_token": "</img>"}
    processor = t.Lfm2VlProcessor(images, tokenizer(**marks, image_thumbnail_token="<global-img>"))
    return t.Lfm2VlForConditionalGeneration(config), _with_template(processor, "<image>")


def _glm4_moe() -> tuple[Any, Any]:
    """A dense layer, then layers of experts."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
    return t.Glm4MoeForCausalLM(t.Glm4MoeConfig(**text(**experts))), tokenizer()


def _gemma4_text() -> tuple[Any, Any]:
    """The last layer is always one of full attention."""
    kinds = ["sliding_attention", "full_attention"] * 2
    settings = {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 8}
    return t.Gemma4ForCausalLM(t.Gemma4TextConfig(**text(layer_types=kinds, **settings))), tokenizer()


def _gpt2() -> tuple[Any, Any]:
    """Layers in a list `h`, whose names of parts are of an older time."""
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 512}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)), tokenizer()


def recurrent_gemma() -> tuple[Any, Any]:
    """Recurrent layers among those of attention, in turns that a configuration repeats; logits are bounded."""
    kinds = {"lru_width": WIDTH, "attention_window_size": 16, "block_types": ["recurrent", "recurrent", "attention"]}
    config = t.RecurrentGemmaConfig(**text(**kinds) | {"num_hidden_layers": 5}, logits_soft_cap=30.0)
    return t.RecurrentGemmaForCausalLM(config), tokenizer()


def gemma4() -> tuple[Any, Any]:
    """Sees; its vision tower keeps the number of its layers."""
    seen = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": TOWER_LAYERS, "num_attention_heads": 2}
    seen |= {"num_key_value_heads": 2, "head_dim": 12, "patch_size": 8, "pooling_kernel_size": 2}
    seen |= {"position_embedding_size": 64}
    marks = {"image_token_id": "<image_soft_token>", "boi_token_id": "<start_of_image>", "eoi_token_id": "<end_of_image>"}
    inner = _gemma4_text()[0].config
    config = t.Gemma4Config(
        vision_config=seen, text_config=inner, video_token_id=_id("<video>"), **{n: _id(m) for n, m in marks.items()}
    )
    return t.Gemma4ForConditionalGeneration(config), tokenizer()


def molmo2() -> tuple[Any, Any]:
    """Pools patches of images by their numbers in a batch, so that those of several prompts cannot go in together.

    Some layers' rotary embeddings are scaled.
    """
    words = tokenizer()
    marks = ["<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>"]
    words.add_special_tokens(
        {"additional_special_tokens": [*marks, "<im_low>", "<|video|>"]}, replace_extra_special_tokens=False
    )
    ids = dict(zip(marks, words.convert_tokens_to_ids(marks), strict=True))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12, "hidden_size": 24, "intermediate_size": 32}
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    config = t.Molmo2Config(
        vision_config=heads | {"num_hidden_layers": TOWER_LAYERS, "image_size": [SIDE, SIDE], "patch_size": 8},
        adapter_config=heads | {"vision_feature_layer": [2, 0], "text_hidden_size": WIDTH},
        text_config=text(additional_vocab_size=16, rope_scaling_layers=[0, 2, 3], rope_parameters=rope),
        image_start_token_id=ids["<im_start>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
    )
    sizes = {"size": SQUARE, "patch_size": 8, "pooling_size": [2, 2]}
    images = t.Molmo2ImageProcessor(**sizes, max_crops=2, overlap_margins=[1, 1])
    processor = t.Molmo2Processor(images, t.Molmo2VideoProcessor(**sizes), words)
    return t.Molmo2ForConditionalGeneration(config), _with_template(processor, "<|image|>")


def hunyuan_vl() -> tuple[Any, Any]:
    """Rounds to float32 in its norms, whatever its weights are."""
    seen = tower(out_hidden_size=WIDTH, text_hidden_size=WIDTH, img_max_token_num=64, max_image_size=64, min_image_size=16)
    rope = {"rope_type": "dynamic", "alpha": 1000.0, "mrope_section": [1, 1, 1, 1], "rope_theta": 10000.0, "factor": 1.0}
    config = t.HunYuanVLConfig(
        vision_config=_without(seen, "image_size"),
        text_config=text(rope_parameters=rope),
        image_token_id=_id("<|image_pad|>"),
        im_start_id=_id("<|vision_start|>"),
        im_end_id=_id("<|vision_end|>"),
        im_newline_id=_id("<img>"),
    )
    ends = {"image_start_token": "<|vision_start|>", "image_end_token": "<|vision_end|>"}
    images = t.HunYuanVLImageProcessor(size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}, patch_size=8)
    processor = t.HunYuanVLProcessor(images, tokenizer(image_token="<|image_pad|>", **ends))
    return t.HunYuanVLForConditionalGeneration(config), _with_template(processor, QWEN_IMAGE)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llama": _llama,
    "llava": llava_of,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "mllama": _mllama,
    "lfm2_vl": _lfm2_vl,
    "glm4_moe": _glm4_moe,
    "gemma4_text": _gemma4_text,
    "gpt2": _gpt2,
    "blip_2": _blip_2,
}
"""Model and processor by type of model."""

TEXT_ALONE = ("llama", "glm4_moe", "gemma4_text", "gpt2")
"""Those that read text alone."""

WORKING = tuple(name for name in MAKERS if name != "blip_2")

WHOLE_ONLY = ("lfm2_vl", "gemma4_text")
"""Those whose layers are not attention and MLP alone."""

WORKING_APART = tuple(name for name in WORKING if name not in WHOLE_ONLY)


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A random model of a type, the same each time, whose layers all do something."""
    return made(MAKERS[name], dtype)


def made(maker: Callable[[], tuple[Any, Any]], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """As `make`, of a type that is not among those that everything is tried with."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # as `from_pretrained` has it: some buffers are computed when the model is made
    try:
        model, processor = maker()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            if path.endswith(("attn_gate", "mlp_gate")):
                parameter.fill_(0.7)
            if path.endswith("mm_input_projection_weight"):  # zeros, until it is trained
                parameter.normal_()
        for path, buffer in model.named_buffers():
            if path.endswith("layer_scalar"):  # Gemma 4's factor of a layer's output, 1 until it is trained
                buffer.fill_(0.7)
    return model.eval(), processor


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as people have it."""
    return save_made(MAKERS[name], folder, dtype)


def save_made(maker: Callable[[], tuple[Any, Any]], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """As `save`, of a type that is not among those that everything is tried with."""
    model, processor = made(maker, dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


AT_HAND = ("llama", "llava", "smolvlm")
"""Types that every run of the tests drives; the others are slow, being many."""


def cases(names: Iterable[str], *more: Any) -> list[Any]:
    """Cases of a parametrized test: types, with `more` behind each."""
    return [pytest.param(name, *more, marks=() if name in AT_HAND else pytest.mark.slow) for name in names]


def text_folder(folder: Path, documents: int = 40) -> Path:
    """A folder with JSON lines of 5 to 60 words."""
    words, rng = WORDS.split(), np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(5, 60, documents)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return folder
