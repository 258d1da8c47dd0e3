"""A small set of images and masks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from make_digits import make_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Return a folder of digits on photographs; leave it as it is."""
    return make_digits(tmp_path_factory.mktemp("digits") / "set", train=12, val=4)
