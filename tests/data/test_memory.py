import multiprocessing
import os
import resource
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xnext.data import (
    ArraySource,
    BadImageError,
    EpochSampler,
    FileSource,
    ImageDataset,
    MemoryLoader,
    PackedImages,
    Preprocessing,
    SharedBatches,
    build_batch_transform,
    build_eval_transform,
    build_loader,
)
from xnext.data import _memory as memory_module
from xnext.errors import UserError


def preprocessing(size=8, in_chans=3, crop_pct=1.0, interpolation="bilinear"):
    return Preprocessing(
        image_size=size,
        mean=(0.485, 0.456, 0.406)[:in_chans],
        std=(0.229, 0.224, 0.225)[:in_chans],
        interpolation=interpolation,
        crop_pct=crop_pct,
        in_chans=in_chans,
    )


class NoisySource(ArraySource):
    """Random pictures, some of them unreadable."""

    def __init__(self, length=10, bad=(), size=8):
        shape = (length, size, size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        super().__init__(images, np.arange(length), "set")
        self.bad = set(bad)

    def read(self, index):
        if index in self.bad:
            raise BadImageError(self.name(index), "is odd")
        return super().read(index)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of odd sizes and kinds; the fourth is truncated."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for width, height, mode in [
        (1, 7, "RGB"),
        (33, 20, "L"),
        (400, 10, "RGB"),
        (9, 9, "RGB"),
        (40, 50, "RGBA"),
    ]:
        shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
        paths.append(folder / f"{len(paths)}.png")
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    return FileSource(paths, np.array([0, 1, 0, 1, 2]))


def in_order(packed, batch_size=4, training=False):
    sampler = SharedBatches(range(len(packed)), batch_size)
    return MemoryLoader(packed, sampler, "cpu", training=training)


def joined(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


@pytest.mark.parametrize("size", [1, 8, 33])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(1.0, "bicubic"), (0.9, "bilinear")])
def test_evaluation_gets_what_it_gets_from_files(files, tmp_path, size, in_chans, crop_pct, interpolation):
    pre = preprocessing(size, in_chans, crop_pct, interpolation)
    packed = PackedImages.write(files, pre, tmp_path / "val.pictures")
    theirs = build_loader(ImageDataset(files, build_eval_transform(pre), training=False), batch_size=2)
    assert_same(joined(in_order(packed, batch_size=2)), joined(theirs))
    assert packed.pixels.shape == (5, in_chans, size, size)
    assert packed.preprocessing == pre
    assert list(packed.bad_images) == [3] and "truncated" in packed.bad_images[3]


@settings(max_examples=30)
@given(length=st.integers(1, 12), data=st.data())
def test_training_gets_what_it_gets_from_files(tmp_path_factory, length, data):
    bad = data.draw(st.sets(st.integers(0, length - 1), max_size=length - 1))
    source, pre = NoisySource(length, bad), preprocessing()
    packed = PackedImages.write(source, pre, tmp_path_factory.mktemp("run") / "train.pictures")
    assert list(packed.bad_images.items()) == [(index, "is odd") for index in sorted(bad)]
    images, labels, places = joined(in_order(packed, training=True))
    assert images.dtype == torch.uint8
    normalised = build_batch_transform(pre, "none", mirror=True)(images)
    dataset = ImageDataset(source, build_eval_transform(pre), training=True, cache=False)
    assert_same((normalised, labels, places), joined(build_loader(dataset, batch_size=4)))


def test_pictures_are_written_in_order_whatever_a_chunk_holds(tmp_path, monkeypatch):
    source = NoisySource(10, bad=[4])
    whole = PackedImages.write(source, preprocessing(), tmp_path / "whole")
    monkeypatch.setattr(memory_module, "_CHUNK", 3)
    PackedImages.write(source, preprocessing(), tmp_path / "chunks")
    assert (tmp_path / "chunks").read_bytes() == (tmp_path / "whole").read_bytes()
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2).clone()
    expected[4] = 0
    assert torch.equal(whole.pixels, expected)


def test_the_order_of_an_epoch_with_and_without_seeds(tmp_path):
    packed = PackedImages.write(NoisySource(10), preprocessing(), tmp_path / "pictures")

    def epoch(seeded):
        sampler = EpochSampler(10, seed=3, seeded=seeded)
        sampler.set_epoch(2)
        loader = MemoryLoader(packed, SharedBatches(sampler, 4, drop_last=True), "cpu", training=True)
        assert len(loader) == 2
        return [labels.tolist() for _, labels, _ in loader]

    assert epoch(seeded=True) == epoch(seeded=False)
    assert epoch(seeded=False)[0] != [0, 1, 2, 3]


def test_several_labels_a_picture(tmp_path):
    source = NoisySource(3, bad=[1])
    source.labels = np.array([[True, False], [True, True], [False, False]])
    packed = PackedImages.write(source, preprocessing(), tmp_path / "pictures")
    dataset = ImageDataset(source, build_eval_transform(preprocessing()), training=False)
    assert_same(joined(in_order(packed)), joined(build_loader(dataset, batch_size=3)))
    assert joined(in_order(packed, training=True))[1].tolist() == [[1, 0], [0, 0], [0, 0]]


def test_batches_do_not_change_the_pictures(tmp_path):
    packed = PackedImages.write(NoisySource(6, bad=[2]), preprocessing(), tmp_path / "pictures")
    for training in (True, False):
        before = joined(in_order(packed, training=training))
        for images, labels, _ in in_order(packed, training=training):
            images.zero_(), labels.zero_()
        assert_same(joined(in_order(packed, training=training)), before)
    assert packed.labels.tolist() == list(range(6))


def test_a_gpu_takes_all_pictures_only_if_they_leave_it_room(monkeypatch):
    pixels = torch.zeros(100, dtype=torch.uint8)
    for free, fits in ((401, True), (400, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1000))
        assert memory_module._fits(pixels, torch.device("cuda")) is fits
    assert not memory_module._fits(pixels, torch.device("cpu"))


# Sharing


def _total(path, queue):
    packed = PackedImages.open(path)
    packed.pixels[0] = 0  # seen by this process alone
    queue.put((int(packed.pixels.sum()), packed.labels.tolist(), packed.bad_images))


def test_another_process_opens_the_same_file_and_cannot_change_it(tmp_path):
    path = tmp_path / "pictures"
    packed = PackedImages.write(NoisySource(10, bad=[4]), preprocessing(), path)
    content = path.read_bytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_total, args=(path, queue))
    process.start()
    total, labels, bad_images = queue.get(timeout=300)
    process.join()
    assert total == int(packed.pixels[1:].sum()) and packed.pixels[0].any()
    assert (labels, bad_images) == (list(range(10)), {4: "is odd"})
    assert path.read_bytes() == content


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_takes_no_memory_of_its_own(tmp_path):
    path = tmp_path / "pictures"
    packed = PackedImages.write(NoisySource(2000), preprocessing(size=32), path)
    joined(in_order(packed, training=True))

    def own_memory():
        mapping = Path("/proc/self/smaps").read_text().partition(str(path))[2]
        return int(mapping.partition("Private_Dirty:")[2].split()[0])

    assert own_memory() == 0
    packed.pixels[:] = 0
    assert own_memory() >= 2000 * 3  # KiB


def test_the_file_may_be_removed_while_it_is_used(tmp_path):
    packed = PackedImages.write(NoisySource(5), preprocessing(), tmp_path / "pictures")
    (tmp_path / "pictures").unlink()
    assert joined(in_order(packed))[1].tolist() == list(range(5))


# Mistakes


def test_nothing_is_written_of_a_source_without_a_readable_picture(tmp_path):
    (tmp_path / "pictures").write_bytes(b"an earlier one")
    with pytest.raises(UserError, match=r"set\[0\]: is odd; nor can any other"):
        PackedImages.write(NoisySource(3, bad=range(3)), preprocessing(), tmp_path / "pictures")
    with pytest.raises(UserError, match="no pictures"):
        PackedImages.write(NoisySource(0), preprocessing(), tmp_path / "pictures")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an earlier one"]


@pytest.mark.parametrize("limit", [50, 1000, 2100])
def test_a_disk_that_ends_in_the_header_the_pixels_or_the_labels(tmp_path, limit):
    path = tmp_path / "pictures"
    path.write_bytes(b"an earlier one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*the file size limit is reached") as error:
            PackedImages.write(NoisySource(10), preprocessing(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an earlier one"]


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="the folder does not exist"):
        PackedImages.write(NoisySource(3), preprocessing(), tmp_path / "none" / "pictures")


def test_what_is_no_file_of_pictures(tmp_path):
    with pytest.raises(UserError, match=r"missing: cannot be opened \(No such file"):
        PackedImages.open(tmp_path / "missing")
    with pytest.raises(UserError, match="cannot be opened"):
        PackedImages.open(tmp_path)
    np.save(tmp_path / "other.npy", np.zeros((3, 4)))
    for content in (b"", b"PK\3\4" * 50, b"words", (tmp_path / "other.npy").read_bytes()):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError, match="file: is damaged, or holds no packed pictures"):
            PackedImages.open(tmp_path / "file")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "pictures"
    packed = PackedImages.write(NoisySource(4, bad=[1]), preprocessing(), path)
    return path, path.read_bytes(), packed.pixels.nbytes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_truncated_file(intact, data):
    path, content, _ = intact
    damaged = path.with_name("truncated")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match="truncated: is damaged"):
        PackedImages.open(damaged)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_no_traceback(intact, data):
    path, content, pixels = intact
    places = [*range(128), *range(128 + pixels, len(content))]  # anything may stand in pixels
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    other = path.with_name("damaged")
    other.write_bytes(bytes(damaged))
    try:
        packed = PackedImages.open(other)
    except UserError as error:
        assert str(other) in str(error) and "\n" not in str(error)
    else:
        assert len(joined(in_order(packed))[0]) == 4


class OverlappingSource(NoisySource):
    """Two threads silence warnings while they read, and the first to begin is the first to end."""

    def __init__(self):
        super().__init__(2)
        self.begun, self.ended = threading.Barrier(2), threading.Event()

    def read(self, index):
        if index == 1:
            self.begun.wait(timeout=10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if index == 0:
                self.begun.wait(timeout=10)
            self.begun.wait(timeout=10)
            if index == 1:
                self.ended.wait(timeout=10)
        self.ended.set()
        return super().read(index)


def test_bad_pictures_that_are_none_of_the_file(intact):
    path, content, _ = intact
    other = path.with_name("other")
    other.write_bytes(content.replace(b'"bad_images": {"1"', b'"bad_images": {"4"'))
    with pytest.raises(UserError, match="other: is damaged"):
        PackedImages.open(other)


def test_reading_in_threads_leaves_the_filters_of_warnings_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = list(warnings.filters)
    PackedImages.write(OverlappingSource(), preprocessing(), tmp_path / "pictures")
    assert warnings.filters == before


def test_opening_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PackedImages.write(NoisySource(3), preprocessing(), tmp_path / "pictures")
