"""How long and how much memory at the size that people have: the estimate of a command next to the clock.

    python -m benchmarks.real_size bundled          search, table, adapt and shrink of the two bundled models, shortened
    python -m benchmarks.real_size smolvlm-256m     one turn of a search, removal, and `shrink` with two steps of recovery
    python -m benchmarks.real_size qwen2-vl-2b      in bfloat16: one turn of a search, then removal and saving of the rest
    python -m benchmarks.real_size llava-1.5-7b     memory of search and recovery from shapes, on the meta device
    python -m benchmarks.real_size linear-maps      fitting one layer's linear map at widths 576, 2,048 and 4,096

The models have the published sizes of their types and random weights, in folders that are written to `--folder` first:
their own configuration classes, processors and image sizes, and the tokenizers of the bundled models. The data are bundled.
A command with `estimate=True` prints the estimate; the clock is that of the command without it, with imports and loading.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.hardware import checkpointed_bytes, training_bytes
from das_gym.adapt.methods.base import make_method
from das_gym.adapt.shrinking.memory import GENERATE_BATCH_SIZE
from das_gym.adapt.shrinking.recovery import insert_trainable

from benchmarks.harness import describe_machine, llava_config, make_parser, memory_mib, restart_peak
from benchmarks.pretrain.answering_models import SMOLVLM_TOKENS, smolvlm_processor
from benchmarks.pretrain.tokenizer import Tokens, special_ids, train_chat_tokenizer
from das_gym.engine.tree import saved_bytes
from das_gym.models.base import tensor_bytes
from das_gym.models.macs import count_macs
from das_gym.models.transformers.layer_removal import prune, pruned_copy
from das_gym.models.transformers.linear_skips import fit_ridge
from das_gym.models.transformers.model import VLM

BUNDLED = {
    "search METER": "agents with evaluations=60",
    "search SmolVLM-mini": "agents with vlm_answering evaluations=60",
    "table METER": "agents table with max_skipped=3 reward_examples=256 test_examples=256",
    "table SmolVLM-mini": "agents table with vlm_answering max_skipped=2 reward_examples=256 test_examples=128",
    "adapt METER": "adapt with train.steps=60 search.evaluations=30 references=False",
    "adapt ViLT": "adapt with vilt_vqa train.steps=60 search.evaluations=30 references=False",
    "shrink SmolVLM-mini": "adapt shrink with train.steps=40 search.evaluations=30 test_examples=100",
    "shrink LLaVA-mini": "adapt shrink with checkpoint=llava_mini train.steps=40 search.evaluations=30 test_examples=100",
}
"""Commands whose estimates are compared with the clock."""

SEARCH = "agents;with;vlm_answering;skip_num=4;reward_examples=2;evaluations=3;agent=random"
SHRINK = f"adapt;shrink;with;mask={[0, 0, 0, 1, 0] * 6};train.steps=2;train.batch_size=2;test_examples=2;control=False"
COMMANDS = {"smolvlm-256m": {"search": SEARCH, "shrink": SHRINK}, "qwen2-vl-2b": {"search": SEARCH}}
"""Shortened commands for models of real size: words, separated by semicolons."""

QWEN_TOKENS = Tokens(
    special=(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|image_pad|>", "<|video_pad|>"),
    ),
    phrases=(),
    speakers=("user", "assistant"),
    bos="<|im_start|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
)

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for line in message['content'] %}{% if line['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ line['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def smolvlm_256m() -> tuple[Any, Any]:
    """SmolVLM-256M's configuration and processor: images whole at 512 px, 64 tokens each."""
    import transformers as t

    tokenizer = train_chat_tokenizer(SMOLVLM_TOKENS)
    vision = t.SmolVLMVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512, patch_size=16
    )
    decoder = t.LlamaConfig(
        **{"vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192},
        **special_ids(tokenizer),
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = t.SmolVLMConfig(
        vision_config=vision, text_config=decoder, image_token_id=image, scale_factor=4, tie_word_embeddings=False
    )
    return config, smolvlm_processor(tokenizer, 512, 64)


def qwen2_vl_2b() -> tuple[Any, Any]:
    """Qwen2-VL-2B's configuration and processor: images at 224 px, 64 tokens each."""
    import transformers as t

    tokenizer = train_chat_tokenizer(QWEN_TOKENS)
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    decoder = {
        **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
        **{"num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        **special_ids(tokenizer),
    }
    config = t.Qwen2VLConfig(vision_config=vision, text_config=decoder, tie_word_embeddings=True, **ids)
    size = {"size": {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}}
    tokenizer.image_token = "<|image_pad|>"
    tokenizer.video_token = "<|video_pad|>"
    processor = t.Qwen2VLProcessor(t.Qwen2VLImageProcessor(**size), tokenizer, t.Qwen2VLVideoProcessor(**size))
    processor.chat_template = QWEN_TEMPLATE
    return config, processor


MODELS = {"smolvlm-256m": (smolvlm_256m, torch.float32), "qwen2-vl-2b": (qwen2_vl_2b, torch.bfloat16)}
"""Models with random weights, and their dtype."""


def write_checkpoint(made: tuple[Any, Any], folder: Path, dtype: torch.dtype) -> Path:
    """Write a model with random weights as `save_pretrained` does, unless the folder exists."""
    from transformers import AutoModelForImageTextToText

    if not (folder / "config.json").exists():
        config, processor = made
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:,.0f} M parameters, {dtype}", flush=True)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def compare_with_clock(name: str, words: Sequence[str]) -> None:
    """Print the estimate of a command, its words without `python -m`, next to the time and peak memory that it takes."""
    command = [sys.executable, "-u", "-m", f"das_gym.{words[0]}", *words[1:]]
    printed = subprocess.run([*command, "estimate=True"], capture_output=True, text=True, check=True).stdout
    line = next(each for each in printed.splitlines() if each.startswith("estimate: "))
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    peak = usage.ru_maxrss / 2**20
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    expected = seconds_in(line)
    memory = float(line.split()[-2])
    print(
        f"{name}: {line}\n{name}: {expected:.0f} s expected, {seconds:.0f} s taken (ratio {expected / seconds:.2f}); "
        f"{memory:.2f} GiB expected, {peak:.2f} GiB taken (ratio {memory / peak:.2f})",
        flush=True,
    )


def seconds_in(line: str) -> float:
    """The time that an estimate begins with."""
    units = {"h": 3600, "min": 60, "s": 1}
    return float(
        sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (h|min|s)\b", line.partition(" (")[0]))
    )


def remove_layers(folder: Path, out: Path) -> None:
    """Remove every seventh decoder layer of a checkpoint, save what is left, and print how long that takes."""
    from transformers import AutoModelForImageTextToText

    restart_peak()
    start = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    loaded = time.perf_counter()
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    prune(model, np.arange(count) % 7 == 3).save_pretrained(out)
    saved = time.perf_counter()
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(
        f"removal from {folder.name}: {loaded - start:.0f} s to load, {saved - loaded:.0f} s to remove and save "
        f"{size / 2**30:.1f} GiB; peak memory {memory_mib('VmHWM') / 1024:.1f} GiB",
        flush=True,
    )


@torch.no_grad()
def estimate_7b(tokens: int, batch: int, removed: int, cached_images: int, tree_gib: float) -> None:
    """Print what LLaVA-1.5-7B in bfloat16 takes, from shapes: no tensor has content.

    Args:
        tokens: Of a prompt, its image included.
        batch: Examples of a step of recovery.
        removed: Decoder layers that are removed.
        cached_images: Images whose features are kept while searching.
        tree_gib: Bound of the hidden states of the mask tree.
    """
    from transformers import LlavaForConditionalGeneration

    gib = 2**30
    with torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        vlm = VLM(LlavaForConditionalGeneration(llava_config((4096, 32, 32), (1024, 24, 16), 32064)))
        torch.set_default_dtype(torch.float32)
    vlm.freeze()
    layers = len(vlm.layers)
    decoder = vlm.model.get_decoder()
    weights = tensor_bytes(list(vlm.parameters()))
    state = torch.empty(1, tokens, vlm.feature_size, dtype=torch.bfloat16, device="meta")
    causal = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")  # given, it is not computed from values
    run = partial(decoder, inputs_embeds=state, attention_mask=causal, use_cache=False)
    macs = count_macs(run)[1]
    features = cached_images * 576 * vlm.feature_size * 2
    say = partial(print, flush=True)
    say(f"weights: {weights / gib:.1f} GiB; decoder: {macs / 1e12:.2f} T MACs for {tokens} tokens")
    say(f"search: {(weights + features) / gib + tree_gib:.1f} GiB: weights, features of {cached_images} images", end=" ")
    say(f"({features / gib:.1f} GiB), hidden states of the mask tree ({tree_gib:.1f} GiB)")
    mask = np.arange(layers) >= layers - removed
    student = pruned_copy(vlm, mask)
    run = partial(student.model.get_decoder(), *run.args, **run.keywords)
    with torch.enable_grad():
        trained = insert_trainable(student, vlm, make_method("lora", {"rank": 16}))
        plain = saved_bytes(lambda: run().last_hidden_state, student.parameters())
    again = checkpointed_bytes(plain, layers - removed, tensor_bytes(state))
    adapters = tensor_bytes(trained) + training_bytes(trained)
    for words, activations in (("", plain), (" and gradient checkpointing", again)):
        total = (weights + adapters + batch * activations) / gib
        say(f"recover=lora, {batch} examples a step{words}: {total:.1f} GiB: weights, LoRA with AdamW", end=" ")
        say(f"({adapters / gib:.1f} GiB), activations ({activations / gib:.2f} GiB an example)")
    cache = GENERATE_BATCH_SIZE * tokens * layers * 2 * vlm.feature_size * 2
    say(f"measuring: {(weights + cache) / gib:.1f} GiB: weights, keys and values of {GENERATE_BATCH_SIZE} prompts", end=" ")
    say(f"({cache / gib:.1f} GiB)")


def time_linear_maps(widths: Sequence[int] = (576, 2048, 4096), tokens: int = 16_384, batch: int = 1024) -> None:
    """Print processor time and memory of fitting one layer's linear map to random hidden states, by width."""
    for width in widths:
        restart_peak()
        before = memory_mib("VmRSS")
        pairs = [(torch.randn(batch, width), torch.randn(batch, width)) for _ in range(tokens // batch)]
        states = memory_mib("VmRSS") - before
        start = time.process_time()
        fit_ridge(pairs)
        seconds = time.process_time() - start
        peak = memory_mib("VmHWM") - before
        print(
            f"width {width}: {seconds:.1f} s of processor time for a layer and {tokens} tokens; hidden states "
            f"{states / 1024:.2f} GiB, at the peak {peak / 1024:.2f} GiB",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the comparisons."""
    parser = make_parser("real_size", __doc__)
    parser.add_argument("what", choices=("bundled", "smolvlm-256m", "qwen2-vl-2b", "llava-1.5-7b", "linear-maps"))
    parser.add_argument("--folder", type=Path, default=Path("runs/real_size"), help="for checkpoints and runs")
    parser.add_argument("--only", default="", help="commands whose name contains this")
    options = parser.parse_args(arguments)
    print(describe_machine(), flush=True)
    runs = options.folder / "runs"
    if options.what == "bundled":
        for name, command in BUNDLED.items():
            if options.only in name:
                compare_with_clock(name, [*command.split(), f"runs_dir={runs}"])
    elif options.what == "llava-1.5-7b":
        estimate_7b(tokens=640, batch=16, removed=6, cached_images=500, tree_gib=3.0)
    elif options.what == "linear-maps":
        time_linear_maps()
    else:
        made, dtype = MODELS[options.what]
        folder = write_checkpoint(made(), options.folder / options.what, dtype)
        shared = [f"checkpoint={folder}", f"runs_dir={runs}"]
        for name, words in COMMANDS[options.what].items():
            if options.only in name:
                compare_with_clock(f"{name} {folder.name}", [*words.split(";"), *shared])
        if options.only in "removal":
            remove_layers(folder, options.folder / f"{folder.name}-smaller")


if __name__ == "__main__":
    main()
