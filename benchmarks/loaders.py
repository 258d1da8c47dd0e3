"""Images a second of each way from small pictures to batches on a CPU, side by side in one run.

    python -m benchmarks.loaders --data SPEC [--output benchmarks/results]

timm's ``create_loader`` reads the pictures' bytes from memory, which is faster than from any disk, and is
measured with its own random crop and with this project's shift, with and without its prefetcher, with 0 to 2
workers; of these the best counts. All ways mirror, normalise and shuffle.
"""

import argparse
import datetime
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from xnext._files import make_folder, write_atomic
from xnext.data import (
    EpochSampler,
    ImageDataset,
    ImageSource,
    MemoryLoader,
    PackedImages,
    Preprocessing,
    SharedBatches,
    build_batch_transform,
    build_loader,
    build_train_transform,
    load_data,
)
from xnext.errors import UserError

ROOT = Path(__file__).parents[1]
BATCH_SIZE = 128
SIZE = 32
REPEATS = 3
SECONDS = 0.7
WARM_UP = 16  # batches, more than all workers hold ready
PREPROCESSING = Preprocessing(
    image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=1.0
)


@dataclass(frozen=True)
class Row:
    """One way and its speed: median, lowest and highest of the repeats, in images a second."""

    way: str
    setting: str
    median: int
    lowest: int
    highest: int


def measure(way: str, setting: str, batches: Iterable[Any]) -> Row:
    """Take batches, epoch after epoch, and return how fast they came."""

    def endless() -> Iterator[int]:
        while True:
            for images, *_ in batches:
                yield len(images)

    stream, speeds = endless(), []
    for _ in range(WARM_UP):
        next(stream)
    for _ in range(REPEATS):
        images, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < SECONDS:
            images += next(stream)
        speeds.append(round(images / seconds))
    stream.close()
    return Row(way, setting, round(statistics.median(speeds)), min(speeds), max(speeds))


class Pictures(Dataset):
    """What a user of timm would write for pictures in memory, as encoded bytes or as arrays."""

    transform: Any = None  # set by create_loader

    def __init__(self, pictures: list[bytes] | list[np.ndarray], labels: list[int]):
        self._pictures = pictures
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self._pictures[index]
        if isinstance(picture, bytes):
            image = Image.open(io.BytesIO(picture)).convert("RGB")
        else:
            image = Image.fromarray(picture)
        return self.transform(image), self._labels[index]


def timm_rows(way: str, dataset: Pictures) -> Iterator[Row]:
    """Measure ``create_loader`` in all its settings."""
    for shift, prefetcher, workers in product((False, True), (False, True), (0, 1, 2)):
        loader = create_loader(
            dataset,
            (3, SIZE, SIZE),
            BATCH_SIZE,
            is_training=True,
            use_prefetcher=prefetcher,
            scale=(0.6, 1.0),
            hflip=0.5,
            color_jitter=None,
            interpolation="bilinear",
            mean=PREPROCESSING.mean,
            std=PREPROCESSING.std,
            num_workers=workers,
            persistent_workers=workers > 0,
            device=torch.device("cpu"),
        )
        if shift:
            dataset.transform.transforms[0] = transforms.RandomCrop(SIZE, padding=SIZE // 8)
        crop = "shift" if shift else "random crop"
        prefetching = "prefetcher" if prefetcher else "no prefetcher"
        yield measure(way, f"{crop}, {prefetching}, workers {workers}", loader)


def dataset_rows(way: str, source: ImageSource, *, cache: bool) -> Iterator[Row]:
    """Measure this project's loader of single pictures."""
    transform = build_train_transform(PREPROCESSING, "light", mirror=True)
    dataset = ImageDataset(source, transform, training=True, cache=cache)
    for workers in (0, 2):
        loader = build_loader(dataset, batch_size=BATCH_SIZE, shuffle=True, workers=workers, drop_last=True)
        yield measure(way, f"shift, workers {workers}", loader)


def memory_row(way: str, packed: PackedImages) -> Row:
    """Measure this project's in-memory loader with its batch transform."""
    sampler = SharedBatches(EpochSampler(len(packed), seed=0, seeded=False), BATCH_SIZE, drop_last=True)
    loader = MemoryLoader(packed, sampler, "cpu", training=True)
    transform = build_batch_transform(PREPROCESSING, "light", mirror=True)

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for images, labels, bad in loader:
                yield transform(images), labels, bad

    return measure(way, "shift", Batches())


def compare(source: ImageSource) -> dict[str, Any]:
    """Measure every way; return the rows and what follows from them."""
    labels = source.labels.tolist()
    encoded = [source.content(index) for index in range(len(source))]
    arrays = [np.asarray(source.read(index)) for index in range(len(source))]
    if {array.shape for array in arrays} != {(SIZE, SIZE, 3)}:
        raise UserError(f"the pictures are not all of {SIZE}x{SIZE} pixels, which this comparison is about")
    decoding = list(timm_rows("timm, decoding", Pictures(encoded, labels)))
    decoded = list(timm_rows("timm, decoded before", Pictures(arrays, labels)))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        packed = PackedImages.write(source, PREPROCESSING, Path(folder) / "pictures")
        packing = time.perf_counter() - started
        memory = memory_row("xnext, in memory", packed)
    rows = [
        *decoding,
        *decoded,
        *dataset_rows("xnext, decoding", source, cache=False),
        *dataset_rows("xnext, decoded cache", source, cache=True),
        memory,
    ]
    return {
        "rows": [asdict(row) for row in rows],
        "ratio_to_timm_decoding": round(memory.median / max(row.median for row in decoding), 1),
        "ratio_to_timm_decoded": round(memory.median / max(row.median for row in decoded), 1),
        "packing": {"images": len(source), "seconds": round(packing, 2)},
    }


def show(result: dict[str, Any]) -> None:
    """Print the best setting of each way, and the ratios."""
    best: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        best[row["way"]] = max(best.get(row["way"], row), row, key=lambda row: row["median"])
    table = Table("way", "best setting", "images/s", "range")
    for row in best.values():
        range_ = f"{row['lowest']:,}–{row['highest']:,}"
        table.add_row(row["way"], row["setting"], f"{row['median']:,}", range_)
    console = Console()
    console.print(table)
    console.print(
        f"in memory / timm: {result['ratio_to_timm_decoding']} decoding, "
        f"{result['ratio_to_timm_decoded']} already decoded; packing {result['packing']['images']:,} images "
        f"took {result['packing']['seconds']} s; load before {result['load'][0]}, after {result['load'][1]}",
        highlight=False,
    )


def main() -> int:
    """Measure, print and write ``loaders.json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaders", description=__doc__)
    parser.add_argument("--data", required=True, metavar="SPEC", help=f"pictures of {SIZE}x{SIZE} pixels")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    try:
        result = compare(load_data(arguments.data).train)
        record = result | {
            "batch_size": BATCH_SIZE,
            "image_size": SIZE,
            "device": "cpu",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": [round(before, 2), round(os.getloadavg()[0], 2)],
            "versions": {name: version(name) for name in ("xnext", "torch", "timm", "pillow")},
            "date": datetime.date.today().isoformat(),
        }
        show(record)
        make_folder(arguments.output)
        write_atomic(arguments.output / "loaders.json", (json.dumps(record, indent=2) + "\n").encode())
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
