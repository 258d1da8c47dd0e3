"""Images and masks are changed together."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from xnext.data import Preprocessing, build_loader
from xnext.segmentation.batches import MaskDataset, build_eval_masks, build_train_masks
from xnext.segmentation.data import IGNORE, load_masks

PRE = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0)


def pair(height, width):
    """Return an image that is white where its mask is 1, in one corner."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[: height // 2, : width // 3] = 1
    return tv_tensors.Image((255 * mask).expand(3, -1, -1).clone()), tv_tensors.Mask(mask)


@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize("size", [(64, 48), (20, 90), (33, 32), (5, 3), (1, 40)])
def test_the_mask_goes_where_the_image_goes(size, augment):
    torch.manual_seed(0)
    change = build_train_masks(PRE, augment, mirror=True)
    wrong, total, ignored = 0, 0, False
    for _ in range(20):
        image, mask = change(*pair(*size))
        assert image.shape == (3, 32, 32) and mask.shape == (32, 32) and image.dtype == torch.float32
        known = mask != IGNORE
        ignored |= not known.all()
        assert set(mask[known].unique().tolist()) <= {0, 1}
        assert (image[:, ~known].abs() < 0.01).all(), "grey beyond the image"
        wrong += int(((image[0] > 0) != (mask == 1))[known].sum())
        total += int(known.sum())
    assert wrong < 0.1 * total
    assert ignored == (augment == "flip" or min(size) * 4 < max(size))


def test_colours_are_distorted_and_masks_are_not():
    image, mask = pair(32, 32)
    image = tv_tensors.Image(torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8))
    plain, distorted = (build_train_masks(PRE, augment, mirror=False) for augment in ("none", "light"))
    torch.manual_seed(0)
    same = [plain(image, mask) for _ in range(4)]
    assert all(torch.equal(one[0], same[0][0]) and torch.equal(one[1], mask) for one in same)
    assert len({float(distorted(image, mask)[0].mean()) for _ in range(6)}) > 3


def test_evaluation_keeps_shapes_and_masks(digits):
    data = load_masks(str(digits))
    dataset = MaskDataset(data.val, build_eval_masks(PRE), training=False)
    image, mask, bad = dataset[0]
    assert image.shape == (3, 32, 32) and bad == -1
    assert np.array_equal(mask, data.val.mask(0))
    for size, expected in (((10, 100), (12, 128)), ((60, 30), (64, 32)), ((1, 1), (32, 32))):
        image, mask = build_eval_masks(PRE)(*pair(*size))
        assert image.shape[1:] == expected and mask.shape == size


def test_unreadable_pairs(digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "set")
    (folder / "masks/train/0000.png").write_bytes(b"")
    (folder / "images/val/0001.png").write_bytes(b"")
    Image.new("L", (3, 3)).save(folder / "masks/train/0001.png")
    data = load_masks(str(folder))
    train = MaskDataset(data.train, build_train_masks(PRE, "none", mirror=True), training=True)
    assert [train[index][2] for index in range(3)] == [0, 1, -1]
    assert torch.equal(train[0][1], train[2][1]) and "another size" in train.bad_images[1]
    val = MaskDataset(data.val, build_eval_masks(PRE), training=False)
    image, mask, bad = val[1]
    assert bad == 1 and (mask == IGNORE).all() and image.shape[0] == 3


def test_batches_are_a_function_of_seed_and_epoch(digits):
    data = load_masks(str(digits))

    def batches(epoch):
        dataset = MaskDataset(data.train, build_train_masks(PRE, "light", mirror=True), training=True)
        loader = build_loader(dataset, batch_size=5, shuffle=True, seed=1)
        loader.batch_sampler.order.set_epoch(epoch)
        return list(loader)

    one, same, other = batches(1), batches(1), batches(2)
    assert [len(images) for images, _, _ in one] == [5, 5, 2]
    for left, right in zip(one, same, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
