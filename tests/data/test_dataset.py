import random
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from xnext.data import (
    ArraySource,
    BadImageError,
    EpochSampler,
    FileSource,
    ImageDataset,
    Preprocessing,
    build_eval_transform,
    build_loader,
    build_train_transform,
)
from xnext.data import _dataset as dataset_module
from xnext.errors import UserError

PRE = Preprocessing(image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", crop_pct=1.0)
EVAL = build_eval_transform(PRE)


class CountingSource(ArraySource):
    """Pictures of grey = index, some of them unreadable; counts what is read."""

    def __init__(self, length, bad=()):
        images = np.tile(np.arange(length, dtype=np.uint8)[:, None, None], (1, 8, 8))
        super().__init__(images, np.arange(length), "set")
        self.bad = set(bad)
        self.reads = 0

    def read(self, index):
        self.reads += 1
        if index in self.bad:
            raise BadImageError(self.name(index), "is odd")
        return super().read(index)


def greys(images):
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def test_items_are_picture_label_and_no_bad_index():
    image, label, bad = ImageDataset(CountingSource(5), EVAL, training=False)[3]
    assert (image.shape, image.dtype) == ((3, 8, 8), torch.float32)
    assert torch.allclose(image, torch.full((3, 8, 8), 3 / 255))
    assert (label, bad) == (3, -1)


@pytest.mark.parametrize("cache", [True, False])
def test_in_training_the_next_readable_picture_stands_in(cache):
    dataset = ImageDataset(CountingSource(5, bad=[1, 2, 4]), EVAL, training=True, cache=cache)
    items = [dataset[i] for i in range(5)]
    assert [label for _, label, _ in items] == [0, 3, 3, 3, 0]
    assert greys(torch.stack([image for image, _, _ in items])) == [0, 3, 3, 3, 0]
    assert [bad for _, _, bad in items] == [-1, 1, 2, -1, 4]
    assert dataset.bad_images == {1: "is odd", 2: "is odd", 4: "is odd"}


@pytest.mark.parametrize("cache", [True, False])
def test_in_evaluation_a_bad_picture_is_blank_and_unlabelled(cache):
    normalised = build_eval_transform(
        Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0)
    )
    image, label, bad = ImageDataset(CountingSource(3, bad=[1]), normalised, training=False, cache=cache)[1]
    assert (label, bad) == (-1, 1)
    assert image.shape == (3, 8, 8)
    assert not image.any()


def test_small_sets_are_read_once_and_known_at_once(monkeypatch):
    source = CountingSource(100, bad=[50])
    dataset = ImageDataset(source, EVAL, training=True)
    assert dataset.bad_images == {50: "is odd"}
    reads = source.reads
    for i in range(100):
        dataset[i]
    assert source.reads == reads
    monkeypatch.setattr(dataset_module, "CACHE_BUDGET", 100 * 8 * 8 * 3 - 1)
    source = CountingSource(100)
    dataset = ImageDataset(source, EVAL, training=True)
    assert source.reads < 100
    reads = source.reads
    dataset[0], dataset[0]
    assert source.reads == reads + 2


@pytest.mark.parametrize("cache", [None, True])
def test_a_set_without_a_readable_picture_is_refused(cache):
    with pytest.raises(UserError, match=r"set\[0\]: is odd"):
        ImageDataset(CountingSource(3, bad=range(3)), EVAL, training=True, cache=cache)


def test_a_set_that_turns_out_unreadable_is_refused():
    dataset = ImageDataset(CountingSource(3, bad=range(3)), EVAL, training=True, cache=False)
    with pytest.raises(UserError, match="is odd"):
        dataset[0]


def test_real_files_with_one_truncated(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.new("RGB", (20 + i, 30), (i, i, i)).save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:50])
    dataset = ImageDataset(FileSource(paths, np.arange(4)), EVAL, training=False)
    images, labels, bad = next(iter(build_loader(dataset, batch_size=4)))
    assert labels.tolist() == [0, 1, -1, 3]
    assert bad.tolist() == [-1, -1, 2, -1]
    assert greys(images) == [0, 1, 0, 3]


# Order


def test_order_is_a_permutation_that_seed_and_epoch_decide():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return [index for index, _ in sampler]

    assert sorted(order(0, 0)) == list(range(50))
    assert order(3, 5) == order(3, 5)
    orders = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    sampler = EpochSampler(50, 0)
    assert list(sampler) == list(sampler)  # until the epoch changes


def test_an_epoch_can_begin_in_its_middle():
    sampler = EpochSampler(50, 0)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.begin_at(3, 20)
    assert list(sampler) == whole[20:]
    sampler.set_epoch(4)
    assert len(list(sampler)) == 50


def test_what_happens_to_a_picture_depends_on_its_place_alone():
    dataset = ImageDataset(CountingSource(9), lambda image: torch.rand(3), training=True)
    torch.manual_seed(5)
    first = dataset[4, 17][0]
    torch.manual_seed(6)
    assert torch.equal(dataset[4, 17][0], first) and not torch.equal(dataset[4, 18][0], first)


def epoch_labels(loader):
    return [labels.tolist() for _, labels, _ in loader]


@pytest.mark.parametrize(("length", "repeats"), [(10, 3), (7, 7), (5, 9), (12, 1)])
def test_repeated_pictures_follow_each_other_in_an_epoch_of_the_same_length(length, repeats):
    sampler = EpochSampler(length, seed=0, repeats=repeats)
    assert len({seed for _, seed in sampler}) == length  # each time changed differently
    order = [index for index, _ in sampler]
    assert len(order) == length
    assert len(set(order)) == -(-length // repeats)
    assert order == sorted(order, key=order.index)


def test_loader_shuffles_only_when_asked_and_keeps_a_lone_small_batch():
    dataset = ImageDataset(CountingSource(10), EVAL, training=True)
    assert list(chain(*epoch_labels(build_loader(dataset, batch_size=4)))) == list(range(10))
    shuffled = build_loader(dataset, batch_size=4, shuffle=True, seed=1)
    assert sorted(chain(*epoch_labels(shuffled))) == list(range(10))
    assert list(chain(*epoch_labels(shuffled))) != list(range(10))
    assert [len(b) for b in epoch_labels(build_loader(dataset, batch_size=4, drop_last=True))] == [4, 4]
    assert [len(b) for b in epoch_labels(build_loader(dataset, batch_size=64, drop_last=True))] == [10]


def test_batch_types():
    dataset = ImageDataset(CountingSource(4), EVAL, training=True)
    images, labels, bad = next(iter(build_loader(dataset, batch_size=4)))
    assert (images.dtype, labels.dtype, bad.dtype) == (torch.float32, torch.int64, torch.int64)
    assert images.shape == (4, 3, 8, 8)


# Worker processes


def noisy_dataset():
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8), np.arange(12), "noise")
    return ImageDataset(source, build_train_transform(PRE, "light", mirror=True), training=True)


def test_workers_repeat_an_epoch_exactly():
    def epoch(number, disturb):
        loader = build_loader(noisy_dataset(), batch_size=5, shuffle=True, seed=3, workers=2)
        random.seed(disturb)
        torch.manual_seed(disturb)
        loader.batch_sampler.order.set_epoch(number)
        return torch.cat([images for images, _, _ in loader])

    first = epoch(4, disturb=0)
    assert torch.equal(first, epoch(4, disturb=1))
    assert not torch.equal(first, epoch(5, disturb=0))


def test_spawned_workers_get_everything_they_need():
    loader = build_loader(noisy_dataset(), batch_size=12, workers=1)
    loader.multiprocessing_context = "spawn"
    _, labels, _ = next(iter(loader))
    assert labels.tolist() == list(range(12))


def test_bad_pictures_are_reported_from_workers():
    dataset = ImageDataset(CountingSource(6, bad=[2]), EVAL, training=True, cache=False)
    bad = torch.cat([bad for _, _, bad in build_loader(dataset, batch_size=3, workers=1)])
    assert bad.tolist() == [-1, -1, 2, -1, -1, -1]


def test_several_labels_a_picture_come_as_ones_and_zeros(tmp_path):
    labels = np.array([[True, False, True], [False, False, False]])
    source = ArraySource(np.zeros((2, 8, 8), np.uint8), np.zeros(2), "set")
    source.labels = labels
    _, batch, bad = next(iter(build_loader(ImageDataset(source, EVAL, training=False), batch_size=2)))
    assert batch.dtype == torch.float32 and batch.tolist() == labels.astype(float).tolist()
    assert bad.tolist() == [-1, -1]
