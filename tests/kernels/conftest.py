"""Networks' operators on made-up images, computed by Triton's interpreter where there is no GPU."""

from collections.abc import Iterator

import pytest
import torch

from xnext.kernels import use_backend


@pytest.fixture
def triton() -> Iterator[None]:
    """The Triton kernels, which raise where they cannot be used."""
    with use_backend("triton"):
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
