"""What happens to a whole batch of small pictures at once, on the device that trains.

Nothing here loops over images, and nothing makes the CPU wait for the device: every choice is a tensor with
a value for each image, and an image whose lot it is not to be changed is computed and passed over.
"""

import math
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from xnext.data._transforms import PHOTO_SIZE, Augment, Preprocessing, augment_options
from xnext.errors import UserError


def build_batch_transform(
    pre: Preprocessing,
    augment: Augment,
    mirror: bool,
    *,
    auto_augment: str | None = None,
    re_prob: float | None = None,
    color_jitter: float | None = None,
) -> nn.Module:
    """Return the transform of training for batches of pictures that have the network's size already.

    It is called with images uint8 ``[B, C, H, W]``, which it leaves as they are, on the device that it was
    moved to, and optionally a ``torch.Generator`` of that device, by default the device's own. It returns
    them normalised, float32 ``[B, C, H, W]``. Each is changed by its own chance.

    Args:
        pre: Size and normalisation.
        augment: ``none``: normalised alone, as in evaluation. ``flip`` and ``light``: shifted by up to an
            eighth, over black, and mirrored half of the time. ``strong``: the same with the changes of
            ``RandomChanges`` and random erasing.
        mirror: Whether a mirrored picture keeps its class.
        auto_augment: Policy of ``RandomChanges``; None: that of ``augment``.
        re_prob: Probability of erasing a box; None: that of ``augment``.
        color_jitter: Largest change of brightness, contrast and saturation; None: that of ``augment``.

    Raises:
        UserError: Another value of ``augment``, changes of ``none``, a policy that is not known here, or
            pictures of 128 pixels or more, of which a crop needs what lies around it.
    """
    options = augment_options(
        pre, augment, auto_augment=auto_augment, re_prob=re_prob, color_jitter=color_jitter
    )
    normalise = Normalise(pre.mean, pre.std)
    if options is None:
        return Steps([ToUnit(), normalise])
    if pre.image_size >= PHOTO_SIZE:
        raise UserError(
            f"image size {pre.image_size}: pictures in memory are augmented below {PHOTO_SIZE} pixels; take "
            "a smaller size, augment none, or read the pictures from their files"
        )
    steps: list[nn.Module] = [ShiftAndMirror(pre.image_size // 8, mirror), ToUnit()]
    if options.get("color_jitter"):
        steps.append(Jitter(options["color_jitter"]))
    if options.get("auto_augment"):
        steps.append(RandomChanges(options["auto_augment"], pre.mean))
    steps.append(normalise)
    if options.get("re_prob"):
        steps.append(Erase(options["re_prob"]))
    return Steps(steps)


class Steps(nn.ModuleList):
    """Steps one after the other; each is called with the images and the generator."""

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the images after the last step."""
        for step in self:
            images = step(images, generator)
        return images


class ShiftAndMirror(nn.Module):
    """Shift images ``[B, C, H, W]`` of any type over black, then mirror half of them.

    Args:
        most: Largest shift up, down, left and right, in pixels.
        mirror: Whether to mirror.
    """

    def __init__(self, most: int, mirror: bool):
        super().__init__()
        self.most = most
        self.mirror = mirror

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the images, each moved by its own chance."""
        batch, channels, height, width = images.shape
        device, most = images.device, self.most
        shift = torch.randint(2 * most + 1, (2, batch, 1), device=device, generator=generator)
        rows = shift[0] + torch.arange(height, device=device)
        columns = shift[1] + torch.arange(width, device=device)
        if self.mirror:
            columns = torch.where(_chance(images, 0.5, generator)[:, None], columns.flip(1), columns)
        # One gather in bytes: on a CPU twice as fast as shifting and mirroring one after the other.
        places = (rows[:, :, None] * (width + 2 * most) + columns[:, None]).flatten(1)
        padded = F.pad(images, (most,) * 4).flatten(2)
        return padded.gather(2, places[:, None].expand(-1, channels, -1)).view(images.shape)


class ToUnit(nn.Module):
    """From uint8 to float32 on the scale 0 to 1, in memory of its own."""

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return images of the same shape."""
        return images.float().div_(255)


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation, in place, to the last bit as in evaluation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", _of_channels(mean), persistent=False)
        self.register_buffer("std", _of_channels(std), persistent=False)

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the images, float32 ``[B, C, H, W]``, changed in place."""
        return images.sub_(self.mean).div_(self.std)


class Jitter(nn.Module):
    """Change brightness, contrast and saturation by factors of 1 - ``most`` (at least 0) to 1 + ``most``."""

    def __init__(self, most: float):
        super().__init__()
        self.most = most

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return images float32 ``[B, C, H, W]`` of 0 to 1, like those that come."""
        low, high = max(0.0, 1 - self.most), 1 + self.most
        for change in (_brighten, _contrast, _saturate):
            images = change(images, _uniform(images, low, high, generator)[:, None, None, None])
        return images


class RandomChanges(nn.Module):
    """RandAugment (Cubuk et al. 2020) for a batch: some changes of each image, drawn from a table.

    The table is timm's with increasing severity, at the same strengths, without equalising, sharpness and
    adding in solarisation, and with scaling. An image never gets the same change twice; the changes of its
    colours come first, and all of its place are one affine map, outside of which it has the mean colour.

    Args:
        policy: ``rand-mM-nN-mstdS-pP-inc1``: M the magnitude of 10, N changes drawn (2), S the standard
            deviation of the magnitude (0; above 100 the magnitude is uniform from 0 to M), P the probability
            of each one drawn (0.5). What has a value in brackets may be left out.
        mean: Colour outside of the image, for each channel.

    Raises:
        UserError: It is no such policy.
    """

    mean: Tensor

    def __init__(self, policy: str, mean: tuple[float, ...]):
        super().__init__()
        self.magnitude, self.number, self.deviation, self.probability = _parse_policy(policy)
        self.register_buffer("mean", _of_channels(mean), persistent=False)
        names = [name for name in _COLOUR_CHANGES if len(mean) == 3 or name != "saturation"]
        self._colours = [_COLOUR_CHANGES[name] for name in names]

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return images float32 ``[B, C, H, W]`` of 0 to 1, like those that come."""
        chosen, strength = self._draw(images, generator)
        colours = len(self._colours)
        for place, change in enumerate(self._colours):
            changed = change(images, strength[:, place, None, None, None])
            images = torch.where(chosen[:, place, None, None, None], changed, images)
        return self._move(images, torch.where(chosen, strength, 0)[:, colours:])

    def _draw(self, images: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw which changes each image gets, bool ``[B, changes]``, and how strong, from -1 to 1."""
        shape = (len(images), len(self._colours) + len(_MOVES))

        def uniform() -> Tensor:
            return torch.rand(shape, device=images.device, generator=generator)

        drawn = uniform().argsort(dim=1) < self.number
        chosen = drawn & (uniform() < self.probability)
        if self.deviation > 100:
            magnitude = self.magnitude * uniform()
        else:
            noise = torch.randn(shape, device=images.device, generator=generator)
            magnitude = self.magnitude + self.deviation * noise
        strength = (magnitude / 10).clamp_(0, 1)
        return chosen, torch.where(uniform() < 0.5, -strength, strength)

    def _move(self, images: Tensor, strength: Tensor) -> Tensor:
        """Rotate, shear, scale and shift by strengths of -1 to 1, ``[B, moves]``, with one resampling."""
        angle, shear_x, shear_y, scale, shift_x, shift_y = (
            most * part for most, part in zip(_MOVES.values(), strength.unbind(1), strict=True)
        )
        cos, sin, one = angle.cos() * (1 + scale), angle.sin() * (1 + scale), torch.ones_like(angle)
        rotate = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
        shear = torch.stack([one, shear_x, shear_y, one], dim=1).view(-1, 2, 2)
        shift = torch.stack([shift_x, shift_y], dim=1)[:, :, None] * 2  # an image is 2 wide on the grid
        grid = F.affine_grid(torch.cat([rotate @ shear, shift], dim=2), list(images.shape), False)
        # Outside of an image the sampler finds zero, which is to stand for the mean.
        return F.grid_sample(images - self.mean, grid, align_corners=False).add_(self.mean)


class Erase(nn.Module):
    """Random erasing (Zhong et al. 2020): put normal noise into a box of 2 to 33 % of the area.

    Args:
        probability: Share of the images that are erased.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return normalised square images float32 ``[B, C, H, W]``, each with a box of its own or none."""
        size = images.shape[-1]
        share = _uniform(images, *_ERASED_SHARE, generator)
        # Of the ratios of height to width, in logarithms, those whose box is no longer than the image.
        most = (-share.log()).clamp(max=math.log(_ERASED_RATIO))
        ratio = (most * _uniform(images, -1, 1, generator)).exp()
        height = ((share * ratio).sqrt() * size).round().clamp(1, size)
        width = (share * size**2 / height).round().clamp(1, size)
        top = (_uniform(images, 0, 1, generator) * (size - height + 1)).floor()
        left = (_uniform(images, 0, 1, generator) * (size - width + 1)).floor()
        rows = _between(top, height, size) & _chance(images, self.probability, generator)[:, None]
        box = rows[:, None, :, None] & _between(left, width, size)[:, None, None]
        noise = torch.randn(images.shape, device=images.device, generator=generator)
        return torch.where(box, noise, images)


_ERASED_SHARE = (0.02, 1 / 3)
_ERASED_RATIO = 1 / 0.3


def _between(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Tell which places lie in a range from ``start [B]`` of ``length [B]``, bool ``[B, size]``."""
    place = torch.arange(size, device=start.device)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def _uniform(images: Tensor, low: float, high: float, generator: Generator | None) -> Tensor:
    """Draw a number for each image, ``[B]``."""
    return torch.rand(len(images), device=images.device, generator=generator) * (high - low) + low


def _chance(images: Tensor, probability: float, generator: Generator | None) -> Tensor:
    """Draw for each image whether something happens, bool ``[B]``."""
    return _uniform(images, 0, 1, generator) < probability


def _of_channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


# Changes of colour take images of 0 to 1 and a number for each, [B, 1, 1, 1].


def _grey(images: Tensor) -> Tensor:
    """Return the luma, ``[B, 1, H, W]``."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _brighten(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images).mean(dim=(2, 3), keepdim=True), images, factor).clamp_(0, 1)


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images), images, factor).clamp_(0, 1)


def _stretch(images: Tensor, strength: Tensor) -> Tensor:
    """Bring the darkest value of each channel to 0 and the lightest to 1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low), images)


def _posterise(images: Tensor, strength: Tensor) -> Tensor:
    """Keep four bits of each value to one."""
    levels = 2 ** (4 - (4 * strength.abs()).floor()).clamp_(min=1)
    return ((images * 255).round_() * (levels / 256)).floor() * (256 / 255 / levels)


def _solarise(images: Tensor, strength: Tensor) -> Tensor:
    """Invert the values above a threshold."""
    return torch.where(images < 1 - strength.abs(), images, 1 - images)


def _enhance(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a change by a factor as one of a strength from -1 to 1."""
    return lambda images, strength: change(images, 1 + 0.9 * strength)


_COLOUR_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": _stretch,
    "inversion": lambda images, strength: 1 - images,
    "posterisation": _posterise,
    "solarisation": _solarise,
    "brightness": _enhance(_brighten),
    "contrast": _enhance(_contrast),
    "saturation": _enhance(_saturate),
}

# What an image's place changes by at most: radians, factors, and shares of its sides.
_MOVES = {
    "rotation": math.radians(30),
    "horizontal shear": 0.3,
    "vertical shear": 0.3,
    "scale": 0.3,
    "horizontal shift": 0.45,
    "vertical shift": 0.45,
}

_POLICY_DEFAULTS = {"n": 2.0, "mstd": 0.0, "p": 0.5}


def _parse_policy(policy: str) -> tuple[float, int, float, float]:
    """Return magnitude, number, standard deviation and probability; see ``RandomChanges``."""
    name, *parts = policy.split("-")
    found = [re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part) for part in parts]
    values = _POLICY_DEFAULTS | {match[1]: float(match[2]) for match in found if match}
    known = {"m", "inc", *_POLICY_DEFAULTS}
    if name != "rand" or None in found or values.keys() != known or values["inc"] != 1:
        raise UserError(
            f"auto_augment {policy!r}: pictures in memory take rand-mM-nN-mstdS-pP-inc1, such as "
            "rand-m9-mstd0.5-inc1"
        )
    return values["m"], int(values["n"]), values["mstd"], values["p"]
