"""What all tests share."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, which asks it then


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, which have a limit of their own, so that none is left at the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    """Give every test one thread and the same random numbers: comparisons must not depend on the machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
