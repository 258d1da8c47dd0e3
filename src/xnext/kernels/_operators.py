"""The operators as they are measured: by name, with the shapes of their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xnext.kernels import functional
from xnext.kernels._geometry import Geometry


@dataclass(frozen=True)
class Operator:
    """An operator of some kernel sizes.

    Attributes:
        name: In the table of winners.
        call: Computes it from an image [N, C, H, W] and its weights.
        shapes: Of the weights, for so many channels.
    """

    name: str
    call: Callable[..., Tensor]
    shapes: Callable[[int], list[tuple[int, ...]]]

    def draw_weights(self, channels: int, **how: Any) -> list[Tensor]:
        """Return random weights for so many channels."""
        return [torch.randn(shape, **how) for shape in self.shapes(channels)]


def _depthwise(height: int, width: int, stride: int = 1) -> Operator:
    geometry = Geometry((height, width), (stride, stride), (height // 2, width // 2))
    return Operator(
        geometry.name,
        lambda x, w: functional.depthwise_conv2d(x, w, None, stride, geometry.padding),
        lambda channels: [(channels, 1, height, width)],
    )


def _inception(side: int, band: int) -> Operator:
    return Operator(
        f"inception {side} {band}",
        lambda x, hw, w, h: functional.inception_dwconv2d(x, hw, None, w, None, h, None),
        lambda channels: [
            (max(channels // 8, 1), 1, *sides) for sides in ((side, side), (1, band), (band, 1))
        ],
    )


def _partial(side: int) -> Operator:
    return Operator(
        f"partial {side}",
        functional.partial_depthwise_conv2d,
        lambda channels: [(max(channels // 4, 1), 1, side, side)],
    )


OPERATORS = {
    operator.name: operator
    for operator in (
        *(_depthwise(side, side, stride) for side in (3, 5, 7, 9, 11) for stride in (1, 2)),
        _depthwise(1, 11),
        _depthwise(11, 1),
        _inception(3, 11),
        _partial(3),
        Operator("max-blur", functional.max_blur_pool2d, lambda channels: []),
    )
}
"""Those that networks use most, by name."""
