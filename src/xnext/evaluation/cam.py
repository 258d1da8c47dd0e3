"""Where a network looks: class-activation maps and the picture that shows them.

Grad-CAM weighs the channels of one layer by how much each raises the logit of a class, and keeps where their
sum is positive (Selvaraju et al. 2017). Its relatives weigh places too (LayerCAM, HiResCAM) or count several
places of a class (Grad-CAM++). The maps come from the pytorch-grad-cam package.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from xnext.data import Preprocessing, build_eval_transform, build_resize
from xnext.errors import UserError
from xnext.evaluation.predict import Classifier

METHODS = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM, "layercam": LayerCAM}
"""By the names of the command line."""

_VIEW_PIXELS = 320  # side of an image in the picture; a network's input may be as small as 32 pixels
_COLUMNS = 3  # images beside each other in the picture
_CELL_INCHES = (4.6, 2.6)  # width and height that one image, its map and their titles take
_TITLE_LETTERS = 32
_FEWEST_PLACES = 4  # a side; a map of 2 x 2 says nothing of where


@dataclass(frozen=True)
class Explanation:
    """Where a network looks in each of N images.

    Attributes:
        network: What it is called.
        views: The square parts of the images that it sees.
        maps: float32 [N, H, W] in [0, 1]; all zero where no place stands out.
        verdicts: Class and probability that each map explains.
    """

    network: str
    views: list[Image.Image]
    maps: np.ndarray
    verdicts: list[str]

    @property
    def silent(self) -> list[int]:
        """Which images have no map."""
        return [index for index, heat in enumerate(self.maps) if not heat.any()]


def explain(
    classifier: Classifier,
    images: Sequence[Image.Image],
    target: int | Sequence[int] | None = None,
    method: str = "gradcam",
    name: str | None = None,
) -> Explanation:
    """Return for each image where the network looks.

    Args:
        classifier: A trained network.
        images: N images of any size, mode RGB.
        target: Index of the class to look for, or of one an image; None: the most probable one of each.
        method: One of ``METHODS``.
        name: What to call the network; by default its own name.
    """
    transform = build_eval_transform(classifier.preprocessing)
    inputs = torch.stack([transform(image) for image in images]).to(classifier.device)
    with torch.inference_mode():
        probabilities = classifier.probabilities(classifier.model(inputs)).cpu()
    if target is None:
        targets = probabilities.argmax(dim=1).tolist()
    else:
        targets = [target] * len(images) if isinstance(target, int) else list(target)
    maps = activation_maps(classifier.model, inputs, targets, method=method)
    verdicts = [
        f"{classifier.classes[index]} ({row[index]:.1%})"
        for index, row in zip(targets, probabilities, strict=True)
    ]
    views = [network_view(image, classifier.preprocessing) for image in images]
    return Explanation(name or classifier.name, views, maps, verdicts)


def activation_maps(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int],
    layer: nn.Module | None = None,
    method: str = "gradcam",
) -> np.ndarray:
    """Return for each image where ``layer`` speaks for that image's target class.

    Neither the parameters, their gradients and ``requires_grad`` flags nor the mode of ``model`` change.

    Args:
        model: A classifier of images [N, C, H, W].
        images: Float batch [N, C, H, W], on the device of ``model``.
        targets: N class indices, one an image.
        layer: Module with an output of places: [N, channels, h, w], [N, h, w, channels] where timm says so of
            the network, or tokens of patches; default: what :func:`target_layer` chooses.
        method: One of ``METHODS``.

    Returns:
        float32 [N, H, W] in [0, 1], each map scaled to its own range; all zero where no place in the image
        stands out for the class.

    Raises:
        UserError: The layer's output has no places.
    """
    if layer is None:
        layer = target_layer(model, min(images.shape[2:]))
    with torch.inference_mode(False), torch.enable_grad(), _frozen(model):
        # A layer that works in place must not change the activations that were kept for the map.
        cam = METHODS[method](model, [layer], reshape_transform=lambda features: _places(model, features))
        try:
            # The gradient starts at the image, so frozen parameters do not cut it off.
            maps = cam(images.detach().clone().requires_grad_(), [ClassifierOutputTarget(t) for t in targets])
        finally:
            cam.activations_and_grads.release()
    return np.nan_to_num(maps, posinf=0.0, neginf=0.0)


def _places(model: Any, features: Tensor) -> Tensor:
    """Return a copy of a layer's output as [N, channels, h, w].

    Raises:
        UserError: It has no places, or nobody says which.
    """
    if features.dim() == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return (features.permute(0, 3, 1, 2) if last else features).clone()
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    first = getattr(model, "num_prefix_tokens", 0)
    if features.dim() == 3 and grid is not None and features.shape[1] - first == grid[0] * grid[1]:
        return features[:, first:].transpose(1, 2).reshape(len(features), -1, *grid)
    raise UserError(
        f"{type(model).__name__} has features {list(features.shape)} without places, so there is no map"
    )


def target_layer(model: nn.Module, image_size: int) -> nn.Module:
    """Return the deepest feature level of ``model`` that still tells places apart.

    That is the last stage at the size a network was made for, and an earlier one for a small image, of which
    the last stage leaves no more than a few places. Where a token of its own is classified, it is the last
    level but one: of the last, no other token counts.

    Args:
        model: A network with timm's ``feature_info``.
        image_size: Shorter side of its input, in pixels.

    Raises:
        UserError: It is an exported network, whose layers cannot be looked at.
    """
    if not hasattr(model, "feature_info"):
        raise UserError("an exported network shows no maps of its layers; give the RUN or the weights")
    levels: list[dict[str, Any]] = list(model.feature_info)  # type: ignore[arg-type]
    fine = [level for level in levels if image_size // level["reduction"] >= _FEWEST_PLACES]
    if getattr(model, "global_pool", None) == "token" and len(levels) > 1:
        fine = levels[:-1]
    return model.get_submodule((fine or levels)[-1]["module"])


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode without parameter gradients, and everything back at the end."""
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, (requires_grad, gradient) in gradients.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def network_view(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return what the network sees of ``image``, a square at a size fit to be looked at."""
    return build_resize(replace(preprocessing, image_size=_VIEW_PIXELS))(image).convert("RGB")


def draw(
    names: Sequence[str], views: Sequence[Image.Image], maps: np.ndarray, verdicts: Sequence[str]
) -> Figure:
    """Draw each image, under its name, beside its map, under the verdict that the map explains.

    Args:
        names: N names of the images.
        views: N square images, as :func:`network_view` gives them.
        maps: [N, H, W] in [0, 1], of the same fields of view.
        verdicts: N texts, such as a class and its probability.
    """
    columns = min(_COLUMNS, len(views))
    rows = -(-len(views) // columns)
    width, height = _CELL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for panel in axes:
        panel.set_axis_off()
    for index, (name, view, heat, verdict) in enumerate(zip(names, views, maps, verdicts, strict=True)):
        image, panel = axes[2 * index : 2 * index + 2]
        image.imshow(view)
        image.set_title(_shorten(name), fontsize=9)
        panel.imshow(overlay(view, heat))
        silent = "" if heat.any() else "\n(no place stands out)"
        panel.set_title(_shorten(verdict) + silent, fontsize=9)
    return figure


def draw_grid(names: Sequence[str], explanations: Sequence[Explanation]) -> Figure:
    """Draw a row an image: the image, and where each of several networks looks.

    Args:
        names: N names of the images.
        explanations: Of the same N images, one a network.
    """
    width, height = _CELL_INCHES[0] / 2, _CELL_INCHES[1]
    columns = 1 + len(explanations)
    figure = Figure(figsize=(width * columns, height * len(names)), layout="constrained")
    axes = figure.subplots(len(names), columns, squeeze=False)
    for row, name in enumerate(names):
        axes[row, 0].imshow(explanations[0].views[row])
        axes[row, 0].set_title(_shorten(name), fontsize=9)
        for panel, one in zip(axes[row, 1:], explanations, strict=True):
            panel.imshow(overlay(one.views[row], one.maps[row]))
            silent = "\n(no place stands out)" if row in one.silent else ""
            panel.set_title(f"{_shorten(one.network)}\n{_shorten(one.verdicts[row])}{silent}", fontsize=9)
    for panel in axes.flat:
        panel.set_axis_off()
    return figure


def overlay(view: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay a map [H, W] in [0, 1] over a grey copy of an image, which shows where the map is zero."""
    smooth = np.asarray(Image.fromarray(heat).resize(view.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = matplotlib.colormaps["turbo"](smooth)[..., :3]
    share = 0.75 * np.sqrt(smooth)[..., None]
    grey = np.asarray(view.convert("L"))[..., None] / 255
    return Image.fromarray(np.rint(255 * (share * colours + (1 - share) * grey)).astype(np.uint8))


def _shorten(text: str) -> str:
    """Return the end of a text that is too long for a title, since file names differ there."""
    return text if len(text) <= _TITLE_LETTERS else "…" + text[1 - _TITLE_LETTERS :]
