"""How large the piece of work of one program is: a table, by operation and taps."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from xnext._types import check_types

_PROGRAMS = 2048
"""Programs of a launch that keep any GPU busy, below which strips are cut shorter."""

_SHORTEST = 8
"""Rows of the shortest strip: each reads some rows of its neighbours again."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One program's piece.

    Attributes:
        places: Places on the axis across, times channels; a power of 2.
        channels: Most channels, a power of 2; where there are fewer, the places become more.
        rows: Most rows of a strip.
        warps: Groups of 32 threads.
        keep: Whether the taps stay in registers; for the forward pass and the gradient of the input.
        part: Taps across that a program takes; for the gradient of the weight.
    """

    places: int = 512
    channels: int = 64
    rows: int = 64
    warps: int = 4
    keep: bool = True
    part: int = 3

    def __post_init__(self) -> None:
        check_types(self)

    def blocks(self, channels: int, across: int) -> tuple[int, int]:
        """Return the block of places and that of channels, powers of 2, for an image of these sizes."""
        block = min(self.channels, _power_of_2(channels))
        return min(self.places // block, _power_of_2(across)), block

    def strip(self, length: int, others: int) -> int:
        """Return the rows of a strip.

        Args:
            length: Rows that there are.
            others: Programs that share each of them.
        """
        rows = min(self.rows, length)
        while rows > _SHORTEST and -(-length // rows) * others < _PROGRAMS:
            rows = -(-rows // 2)
        return max(rows, 1)


def find_tile(operation: str, taps_s: int, taps_a: int, stride: int) -> Tile:
    """Return the tile of an operation: its own row of the table, or that of the next larger kernel.

    Args:
        operation: ``forward``, ``input`` or ``weight``.
        taps_s: Taps along the strip.
        taps_a: Taps across.
        stride: Of the convolution.
    """
    table = read_tiles()[operation]
    fitting = [
        (size, tile)
        for size, tile in table.items()
        if size[0] >= taps_s and size[1] >= taps_a and size[2] == stride
    ]
    return min(fitting, key=lambda row: row[0][0] * row[0][1])[1]


@cache
def read_table() -> dict[str, Any]:
    """Return what was measured and chosen: `tiles.json`."""
    return json.loads((resources.files(__package__) / "tiles.json").read_text(encoding="utf-8"))


@cache
def read_tiles() -> dict[str, dict[tuple[int, ...], Tile]]:
    """Return the table, by operation, then by taps along, taps across and stride."""
    return {
        operation: {tuple(map(int, size.split("x"))): Tile(**tile) for size, tile in rows.items()}
        for operation, rows in read_table()["tiles"].items()
    }


def _power_of_2(number: int) -> int:
    """Return the smallest power of 2 that is not less."""
    return 1 << max(number - 1, 0).bit_length()
