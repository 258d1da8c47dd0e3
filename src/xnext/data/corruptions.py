"""Synthetic corruptions of pictures at five severities, with the parameters of ImageNet-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
2019. Lengths are theirs for 224 pixels and shrink with the picture, so that small ones are not lost
altogether. Glass blur, snow, frost and elastic transforms, which need pictures or loops of their own, are
left out. A picture is always corrupted alike: its own pixels start the noise.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
_REFERENCE = 224  # pixels a side, to which lengths belong

Pixels = np.ndarray
"""float64 [height, width, channels], 0 to 1."""


def gaussian_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Add noise as of a sensor in poor light."""
    return x + rng.normal(scale=(0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], size=x.shape)


def shot_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Count few photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Make some values black or white."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit = rng.random(x.shape) < share
    return np.where(hit, rng.integers(0, 2, x.shape), x)


def defocus_blur(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Blur by a disk."""
    radius = (3, 4, 6, 8, 10)[severity - 1] * _scale(x)
    reach = int(np.ceil(radius))
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(xs, ys), 0, 1)  # its edge is soft
    return _convolve(x, disk)


def motion_blur(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Blur along a line, as a moving camera does."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    reach, width = max(1, round(radius * _scale(x))), max(sigma * _scale(x), 1e-3)
    angle = np.deg2rad(rng.uniform(-45, 45))
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
    line = np.exp(-(along**2) / (2 * width**2)) * np.clip(1 - np.abs(across), 0, 1) * (along >= -0.5)
    return _convolve(x, line)


def zoom_blur(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Average the picture with larger ones of itself."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, most, step)
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def fog(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Put clouds before the picture."""
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    clouds = _plasma(x.shape[:2], decay, rng)[..., None]
    return (x + strength * clouds) * x.max() / (x.max() + strength)


def brightness(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Raise the value of every colour."""
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 0, 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-12), raised)


def contrast(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Bring all values nearer to their mean."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return mean + (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]


def pixelate(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Make the picture of larger pixels."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    picture = _to_picture(x)
    small = picture.resize(
        (max(1, int(picture.width * share)), max(1, int(picture.height * share))), Image.Resampling.BOX
    )
    return _to_pixels(small.resize(picture.size, Image.Resampling.BOX))


def jpeg_compression(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Compress the picture with little quality."""
    buffer = io.BytesIO()
    _to_picture(x).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return _to_pixels(Image.open(buffer))


CORRUPTIONS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, motion_blur, zoom_blur, fog, brightness,
        contrast, pixelate, jpeg_compression,
    )
}  # fmt: skip
"""By name; each takes pixels, a severity and a generator."""


def corrupt(picture: Image.Image, name: str, severity: int) -> Image.Image:
    """Return a corrupted picture of the same size and mode.

    Args:
        picture: RGB or grey.
        name: One of ``CORRUPTIONS``.
        severity: One of ``SEVERITIES``.
    """
    rng = np.random.default_rng([severity, zlib.crc32(name.encode()), zlib.crc32(picture.tobytes())])
    return _to_picture(CORRUPTIONS[name](_to_pixels(picture), severity, rng))


def _scale(x: Pixels) -> float:
    return min(x.shape[:2]) / _REFERENCE


def _convolve(x: Pixels, kernel: np.ndarray) -> Pixels:
    return ndimage.convolve(x, (kernel / kernel.sum())[..., None], mode="mirror")


def _zoom(x: Pixels, factor: float) -> Pixels:
    """Return the middle of a picture, enlarged."""
    height, width = x.shape[:2]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    scale = np.array([1 / factor, 1 / factor])
    parts = [
        ndimage.affine_transform(x[..., c], scale, offset=centre - centre * scale, order=1, mode="nearest")
        for c in range(x.shape[2])
    ]
    return np.stack(parts, axis=2)


def _plasma(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return clouds between 0 and 1: noise of each size, the weaker the finer."""
    clouds, size, amplitude = np.zeros(shape), 2, 1.0
    while size < 2 * max(shape):
        grid = rng.random((size + 1, size + 1))
        rows, columns = (np.linspace(0, size, length) for length in shape)
        places = np.meshgrid(rows, columns, indexing="ij")
        clouds += amplitude * ndimage.map_coordinates(grid, places, order=1)
        size, amplitude = 2 * size, amplitude / decay
    return (clouds - clouds.min()) / max(float(np.ptp(clouds)), 1e-12)


def _to_pixels(picture: Image.Image) -> Pixels:
    pixels = np.asarray(picture, dtype=np.float64) / 255
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _to_picture(x: Pixels) -> Image.Image:
    values = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(values if values.shape[2] == 3 else values[..., 0])
