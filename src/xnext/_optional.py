"""Whether PyTorch is there: where exported networks are served it need not be."""

from functools import cache


@cache
def has_torch() -> bool:
    """Return whether PyTorch can be imported; if so, it is."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
