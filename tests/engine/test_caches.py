import dataclasses

import pytest
import torch

from das_gym.engine.caches import EncoderCache
from das_gym.models.inputs import Pair
from das_gym.problem.problem import Problem


@pytest.fixture
def pairs(tiny_problem) -> list[Pair]:
    return tiny_problem.task.pairs(tiny_problem.splits.reward[:30])


def new_cache(problem: Problem, **settings) -> EncoderCache:
    return EncoderCache(problem.vlp, problem.task.processor, **settings)


@pytest.mark.slow
def test_bits_do_not_depend_on_company(tiny_problem, pairs):
    together = new_cache(tiny_problem)
    together(pairs)
    for size in (1, 7, 11):
        apart = new_cache(tiny_problem)
        for start in range(0, len(pairs), size):
            apart(pairs[::-1][start : start + size])
        one, other = (cache(pairs).hidden for cache in (apart, together))
        assert all(torch.equal(one[stream], other[stream]) for stream in ("text", "image"))


def test_cache_encodes_each_text_and_image_once(tiny_problem, pairs):
    cache = new_cache(tiny_problem)
    for _ in range(2):
        cache(pairs)
    assert cache.spent.texts == len({pair.text for pair in pairs}) <= len(pairs)
    assert cache.spent.images == len({pair.image.key for pair in pairs}) < len(pairs)


def test_disk_cache_is_read_by_others_and_damaged_files_are_rewritten(tmp_path, tiny_problem, pairs):
    def run() -> tuple[int, int, torch.Tensor]:
        cache = new_cache(tiny_problem, folder=tmp_path)
        hidden = cache(pairs[:2]).hidden
        return cache.spent.texts, cache.spent.images, torch.cat([hidden["text"], hidden["image"]], dim=1)

    first, again = run(), run()
    assert again[:2] == (0, 0)
    assert torch.equal(first[2], again[2])
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    assert run()[:2] == first[:2]
    assert run()[:2] == (0, 0)


def test_changed_image_is_encoded_again(tmp_path, tiny_problem, pairs):
    image_file = tmp_path / "image.jpg"
    image_file.write_bytes(pairs[0].image.path.read_bytes())
    pair = dataclasses.replace(pairs[0], image=dataclasses.replace(pairs[0].image, path=image_file))
    first = new_cache(tiny_problem, folder=tmp_path / "kept")([pair])
    other = next(p for p in pairs if p.image.key != pairs[0].image.key)
    image_file.write_bytes(other.image.path.read_bytes())
    cache = new_cache(tiny_problem, folder=tmp_path / "kept")
    second = cache([pair])
    assert (cache.spent.texts, cache.spent.images) == (0, 1)
    assert not torch.equal(first.hidden["image"], second.hidden["image"])


def test_disk_cache_of_another_model_or_processor_is_not_read(tmp_path, tiny_problem, pairs):
    new_cache(tiny_problem, folder=tmp_path)(pairs[:2])
    processor = dataclasses.replace(tiny_problem.task.processor, max_text_length=5)
    shorter = EncoderCache(tiny_problem.vlp, processor, folder=tmp_path)
    shorter(pairs[:2])
    assert shorter.spent.texts == 2
    weight = tiny_problem.vlp.text_transform.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] += 1
        changed = new_cache(tiny_problem, folder=tmp_path)
        changed(pairs[:2])
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert changed.spent.texts == 2


def test_data_that_do_not_fit_are_found_as_far_as_they_fit(tiny_problem, pairs):
    """Read in the same order again and again, a cache of the least recently used would find nothing."""
    images = {pair.image.key: pair.image for pair in pairs}
    whole = new_cache(tiny_problem)
    whole.encode("image", images)
    cache = new_cache(tiny_problem, max_bytes=whole.kept_bytes * 5 // 7)
    assert len(images) == 7
    for _ in range(4):
        for key, image in images.items():
            cache.encode("image", {key: image})
    assert cache.spent.images == 7 + 3 * 2
    assert cache.kept_bytes == cache.max_bytes
    texts = dict.fromkeys(pair.text for pair in tiny_problem.task.pairs(tiny_problem.splits.train[:4]))
    for _ in range(9):
        cache.encode("text", {text: text for text in texts})
    before = cache.spent.texts
    cache.encode("text", {text: text for text in texts})
    assert cache.spent.texts == before  # other data take the place of what is used no more
