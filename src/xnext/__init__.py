"""Depthwise-separable ConvNets, from Xception to InceptionNeXt, native to timm.

Importing the package registers its networks with timm: ``timm.create_model("nexception_t")`` works. Without
PyTorch there is ``xnext.deploy.Runtime`` alone, which runs exported networks.
"""

from xnext._optional import has_torch
from xnext._version import __version__
from xnext.errors import UserError

if has_torch():
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


def __getattr__(name: str) -> object:
    """Say why a name is missing where PyTorch is."""
    if name in __all__:
        raise AttributeError(f"xnext.{name} needs PyTorch, which is not installed: pip install torch timm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
