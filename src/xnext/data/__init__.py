"""Where images come from: sources, decoding, splits, transforms, batches."""

from xnext._optional import has_torch
from xnext.data._decode import BadImageError, decode_image, find_images
from xnext.data._preprocessing import Preprocessing

if has_torch():
    from xnext.data._batch_transforms import build_batch_transform
    from xnext.data._batches import SharedBatches
    from xnext.data._check import SMALL_SIDE, DataReport, check_data
    from xnext.data._dataset import EpochSampler, ImageDataset, build_loader
    from xnext.data._load import absolute_spec, load_data, load_pictures
    from xnext.data._memory import MemoryLoader, PackedImages
    from xnext.data._packed import PackedSource, write_packed
    from xnext.data._sources import (
        ArraySource,
        FileSource,
        ImageData,
        ImageSource,
        check_same_classes,
        stratified_split,
        unlabelled,
        user_path,
    )
    from xnext.data._transforms import (
        Augment,
        build_eval_transform,
        build_resize,
        build_train_transform,
    )

__all__ = [
    "SMALL_SIDE",
    "ArraySource",
    "Augment",
    "BadImageError",
    "DataReport",
    "EpochSampler",
    "FileSource",
    "ImageData",
    "ImageDataset",
    "ImageSource",
    "MemoryLoader",
    "PackedImages",
    "PackedSource",
    "Preprocessing",
    "SharedBatches",
    "absolute_spec",
    "build_batch_transform",
    "build_eval_transform",
    "build_loader",
    "build_resize",
    "build_train_transform",
    "check_data",
    "check_same_classes",
    "decode_image",
    "find_images",
    "load_data",
    "load_pictures",
    "stratified_split",
    "unlabelled",
    "user_path",
    "write_packed",
]
