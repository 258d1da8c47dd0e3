"""Compile every kernel of the table for a GPU that is not there: `python ahead_of_time.py 90 [operation]`.

Prints a JSON line for each: its name, registers, bytes of stack (what did not fit into registers), bytes of
shared memory and those that each load of a thread takes. It is a process of its own since Triton must not be
interpreting.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xnext.kernels import _launch, _tiles, _triton, _triton_pool

TYPES = {"fp32": 4, "bf16": 2}
OPERATIONS = {
    "forward": _triton.correlate, "input": _triton.correlate, "weight": _triton.correlate_weight,
    "sum": _triton.add_up, "mix": _triton.mix,
    "pool": _triton_pool.max_blur, "pool_input": _triton_pool.max_blur_input,
}  # fmt: skip
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


# What else an operation is compiled for: backwards, or with nothing kept for the gradient.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mix": [{}, {"BACK": True, "HAS_BIAS": False}],
    "pool": [{}, {"SAVE": False}],
}


def constants(operation: str, size: tuple[int, ...], tile: _tiles.Tile, align: int) -> dict[str, Any]:
    """Return what a launch of 64 channels and 56x56 places has at compile time."""
    taps_s, taps_a, stride = size
    block_a, block_c = tile.blocks(64, 56)
    common = {"ALIGN": align, "WIDE": False, "BLOCK_A": block_a, "BLOCK_C": block_c}
    if operation == "mix":
        keep = {"KEEP": tile.keep, "BACK": False, "HAS_BIAS": True}
        return common | keep | {"SQUARE": taps_a, "BAND": taps_s}
    if operation == "pool":
        return common | {"SAVE": True}
    if operation in ("pool_input", "sum"):
        return common
    common |= {"TAPS_S": taps_s, "TAPS_A": taps_a, "STRIDE_S": stride, "STRIDE_A": stride}
    common |= {"DILATION_S": 1, "DILATION_A": 1}
    if operation == "weight":
        return common | {"PART": tile.part}
    back = operation == "input"
    return common | {"KEEP": tile.keep, "BACK": back, "HAS_BIAS": not back}


def compile_kernel(kernel: Any, values: dict[str, Any], tile: _tiles.Tile, dtype: str, target: int) -> dict:
    """Return what the compiler says of a kernel."""
    signature, known, aligned = {}, dict(values), {}
    for place, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            packed = not values.get("KEEP", True) and re.fullmatch("w[012]?_ptr", name)
            signature[name] = {"out_ptr": "*fp32", "sums_ptr": "*fp32", "code_ptr": "*u8"}.get(
                name, "*fp32" if packed else f"*{dtype}"
            )
            aligned[(place,)] = [["tt.divisibility", 16]]
        elif name in values or re.fullmatch("([xyg]|dx)_c", name):
            signature[name] = "constexpr"
            known.setdefault(name, 1)  # channels-last
        elif not values.get("KEEP", True) and re.fullmatch("w[012]?_c", name):
            signature[name], known[name] = "constexpr", 1  # the packed weight
        else:
            signature[name] = "i32"
    places = {(kernel.arg_names.index(name),): value for name, value in known.items()}
    source = ASTSource(kernel, signature, places, aligned)
    compiled = triton.compile(source, GPUTarget("cuda", target, 32), {"num_warps": tile.warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage.stdout)
    assert found, usage.stderr
    loads = re.findall(r"ld\.global\S*?((?:\.v\d)?)\.b(\d+)", compiled.asm["ptx"])
    widths = sorted(int(vector[2:] or 1) * int(bits) // 8 for vector, bits in loads)
    return {
        "registers": int(found[1]),
        "stack": int(found[2]) + int(found[3]),
        "shared": compiled.metadata.shared,
        "loads": widths,
    }


def compile_all(target: int, only: str | None) -> Iterator[dict[str, Any]]:
    """Yield a row for each operation, size and type of the table."""
    tiles = _tiles.read_tiles() | {"sum": {(3, 3, 1): _launch._SUM}}  # the same for all sizes
    for operation, rows in tiles.items():
        if only not in (None, operation):
            continue
        for (size, tile), (dtype, bytes_), variant in product(
            rows.items(), TYPES.items(), VARIANTS.get(operation, [{}])
        ):
            values = constants(operation, size, tile, 16 // bytes_) | variant
            row = compile_kernel(OPERATIONS[operation], values, tile, dtype, target)
            columns = size[1] if tile.keep and operation in ("forward", "input") else 1
            row["images"] = -(-columns // size[2]) if operation == "input" else columns
            name = " ".join([operation, "x".join(map(str, size)), dtype, *variant])
            yield {"name": name, "packed": not tile.keep} | row


if __name__ == "__main__":
    for line in compile_all(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None):
        print(json.dumps(line), flush=True)
