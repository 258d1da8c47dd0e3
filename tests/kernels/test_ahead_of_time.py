"""What the compiler makes of the kernels, for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("ahead_of_time.py")


def compiled(target: int, operation: str, folder: Path) -> list[dict]:
    """Return a row for each size and type of the table."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, str(SCRIPT), str(target), operation]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("operation", ["forward", "input", "weight", "sum", "mix", "pool", "pool_input"])
def test_no_kernel_spills_and_images_are_read_eight_bytes_at_a_time(target, operation, tmp_path):
    rows = compiled(target, operation, tmp_path)
    assert rows
    for row in rows:
        assert row["stack"] == 0, row
        if operation not in ("weight", "sum"):  # whose sums over places take some
            assert row["shared"] == 0, row
        assert sum(width >= 8 for width in row["loads"]) >= row["images"], row
        if operation in ("weight", "sum", "pool") or row["packed"]:  # which read nothing else, or packed taps
            assert min(row["loads"]) >= 8, row
