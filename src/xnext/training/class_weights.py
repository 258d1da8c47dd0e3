"""How much each class counts in the loss."""

from pathlib import Path

import numpy as np

from xnext._yaml import read_yaml
from xnext.data import ImageData
from xnext.errors import UserError, suggest


def read_class_weights(choice: str, data: ImageData) -> np.ndarray | None:
    """Return the weight of each class, float64 [classes], or None for all alike.

    ``auto`` makes all classes weigh alike together: with one class an image, a class of ``n`` among ``N``
    images and ``K`` classes has the weight ``N / (K n)`` in the cross-entropy; with several, its positive
    targets have the weight ``(N - n) / n`` in the binary cross-entropy.

    Args:
        choice: ``none``, ``auto``, or a YAML file of class names and weights, 1 for those that are not in it.
        data: The classes, and the training images that are counted.

    Raises:
        UserError: The file cannot be read, or holds other classes or something else than positive numbers.
    """
    if choice == "none":
        return None
    if choice == "auto":
        counts = data.count(data.train).astype(np.float64)
        images = len(data.train)
        if data.multilabel:
            return np.maximum(images - counts, 1) / counts
        return images / (len(counts) * counts)
    path = Path(choice)
    if not path.exists():
        raise UserError(f"class_weights {choice!r} is no file; give none, auto or a YAML file of weights")
    weights = np.ones(len(data.classes))
    for name, weight in read_yaml(path).items():
        if str(name) not in data.classes:
            hint = suggest(str(name), data.classes)
            raise UserError(f"{path}: {data.name} has no class {str(name)!r}.{hint}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise UserError(f"{path}: the weight of {str(name)!r} must be a number above 0, not {weight!r}")
        weights[data.classes.index(str(name))] = weight
    return weights
