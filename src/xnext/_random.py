"""Randomness as a function of what it is for, so that nothing has to be remembered to repeat it."""

import random

import numpy as np
import torch

# What a seed is for: the same number of an epoch and of a step must not give the same one.
EPOCH, STEP, PICTURE = 1, 2, 3

_BITS_OF_TORCH = 63
_BITS_OF_NUMPY = 32


def derive_seed(seed: int, purpose: int, number: int) -> int:
    """Return a seed of 63 bits; any other purpose or number gives one that has nothing to do with it."""
    state = np.random.SeedSequence((seed, purpose, number)).generate_state(1, np.uint64)
    return int(state[0]) >> (64 - _BITS_OF_TORCH)


def seed_all(seed: int) -> None:
    """Set the generators of Python, NumPy and PyTorch, on all devices."""
    seed_cpu(seed)
    torch.manual_seed(seed)


def seed_cpu(seed: int) -> None:
    """Set the generators of Python, NumPy and PyTorch's CPU, which takes a tenth of the time."""
    random.seed(seed)
    np.random.seed(seed % 2**_BITS_OF_NUMPY)
    torch.default_generator.manual_seed(seed)
