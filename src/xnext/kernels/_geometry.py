"""How a kernel moves over an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over an image; each pair is for height and width."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def output_size(self, size: Sequence[int]) -> Pair:
        """Return height and width of the output for those of the input."""
        height, width = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i]
            + 1
            for i in range(2)
        )
        return height, width

    @property
    def name(self) -> str:
        """What tables call it: the sides of the kernel and the stride."""
        return f"{self.kernel[0]}x{self.kernel[1]} stride {self.stride[0]}"

    @property
    def axes(self) -> Pair:
        """Along which axis the strips run, and the one across: along the only long side of a band."""
        return (1, 0) if self.kernel[0] < self.kernel[1] else (0, 1)


MAX_BLUR = Geometry((3, 3), (2, 2), (1, 1))
"""How the blur of max-blur pooling moves."""


def empty_like(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return an empty image of another height and width, in the layout of x."""
    return torch.empty(
        (*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x)
    )
