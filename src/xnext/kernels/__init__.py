"""Depthwise convolution as fast as memory: operators for any network, by Triton or by PyTorch."""

from xnext.kernels._backend import Backend, use_backend
from xnext.kernels.accelerate import accelerate
from xnext.kernels.functional import (
    depthwise_conv2d,
    inception_dwconv2d,
    max_blur_pool2d,
    partial_depthwise_conv2d,
)
from xnext.kernels.fuse import fuse

__all__ = [
    "Backend",
    "accelerate",
    "depthwise_conv2d",
    "fuse",
    "inception_dwconv2d",
    "max_blur_pool2d",
    "partial_depthwise_conv2d",
    "use_backend",
]
