"""Depthwise-separable ConvNets, from Xception to InceptionNeXt, native to timm.

Importing the package registers its networks with timm: ``timm.create_model("nexception_t")`` works.
"""

from xnext._version import __version__
from xnext.errors import UserError
from xnext.kernels import accelerate, fuse
from xnext.models import create_model, get_config, list_models, load_checkpoint

__all__ = [
    "UserError",
    "__version__",
    "accelerate",
    "create_model",
    "fuse",
    "get_config",
    "list_models",
    "load_checkpoint",
]
