"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    """Give every test one thread and the same random numbers: comparisons must not depend on the machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
