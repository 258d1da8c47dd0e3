"""Predictions of any number of images, by several processes or a cluster, through any kill.

The images are divided into chunks. Workers compute; this process alone writes, and a chunk is done exactly
when its part is in the folder. So the parts are all the state there is.
"""

import hashlib
import json
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from xnext._files import is_temporary, make_folder, write_atomic, write_error
from xnext._interrupts import Interrupts, Stopped
from xnext._types import check_types
from xnext._workers import require_free_of
from xnext._yaml import read_yaml
from xnext.data import BadImageError, ImageSource
from xnext.deploy._pool import Pool
from xnext.errors import UserError, is_out_of_memory
from xnext.evaluation.predict import Classifier, answer, load_classifier, weights_file

if TYPE_CHECKING:
    from xnext.deploy._parts import Row

CHUNK_SIZE = 1000
BATCH_SIZE = 32

_HEADER = "# What these predictions are of. Go on with the same command and --resume.\n"
# pandas and its like take for a part what begins with neither a dot nor an underscore.
_CONFIG, _SUMMARY = "_config.yaml", "_summary.json"
_MOST_LOST = 2  # times that a chunk is done again whose process was killed
_LOOK = 0.2  # seconds between two looks at signals
_LOADING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a worker loads.

    Attributes:
        checkpoint: A run folder or a weight file, by its absolute path.
        model: Name of the network that published weights belong to.
        sha256: Of the weight file.
    """

    checkpoint: str
    model: str | None
    sha256: str

    @classmethod
    def of(cls, checkpoint: Path, model: str | None) -> "Network":
        """Return what a worker is told of a network, after a look at its weights.

        Raises:
            UserError: Nothing usable is there.
        """
        load_classifier(checkpoint, model)
        return cls(checkpoint=str(checkpoint.absolute()), model=model, sha256=_hash(checkpoint))

    def load(self) -> Classifier:
        """Return the network; each process loads it once.

        Raises:
            UserError: It is not there, or another one is.
        """
        with _LOADING:
            return _load(self)


@dataclass(frozen=True, kw_only=True)
class BulkConfig:
    """What predictions are of, as it stands in their folder.

    Attributes:
        inputs: What the user named.
        images: How many images that is.
        images_sha256: Their fingerprint.
        checkpoint: Run folder or weight file.
        model: Name of the network that published weights belong to.
        weights_sha256: Of the weight file.
        topk: Classes to name for each image, as ``predict`` has it.
        batch_size: Images that go through the network at once.
        chunk_size: Images of a part.
    """

    inputs: tuple[str, ...]
    images: int
    images_sha256: str
    checkpoint: str
    model: str | None
    weights_sha256: str
    topk: int | None = None
    batch_size: int = BATCH_SIZE
    chunk_size: int = CHUNK_SIZE

    def __post_init__(self) -> None:
        check_types(self)


_SAME = {  # field: what is said of it where it may not differ
    "images": "the number of images",
    "images_sha256": "what the images are",
    "weights_sha256": "the weights of the network",
    "model": "--model",
    "topk": "--topk",
    "batch_size": "--batch-size",
    "chunk_size": "--chunk-size",
}


class Predictions:
    """A folder of predictions, a part a chunk of the images.

    Attributes:
        path: The folder.
        config: What they are of.
        source: The images.
    """

    def __init__(self, path: Path, config: BulkConfig, source: ImageSource, lock: Any) -> None:
        self.path, self.config, self.source = path, config, source
        self._lock = lock
        self._network = Network(
            checkpoint=config.checkpoint, model=config.model, sha256=config.weights_sha256
        )

    @classmethod
    def create(
        cls, path: Path, inputs: Sequence[str], source: ImageSource, network: Network, **options: Any
    ) -> "Predictions":
        """Begin a folder.

        Args:
            path: The folder.
            inputs: What the user named.
            source: The images that these are.
            network: What looks at them.
            options: Any of the last three fields of ``BulkConfig``.

        Raises:
            UserError: The folder is taken, or cannot be written.
        """
        _require_free(path)
        config = _describe(inputs, source, network, options)
        make_folder(path)
        lock = _lock(path)
        _require_free(path)
        content = yaml.safe_dump(asdict(config) | {"inputs": list(inputs)}, sort_keys=False)
        write_atomic(path / _CONFIG, (_HEADER + content).encode())
        return cls(path, config, source, lock)

    @classmethod
    def resume(
        cls, path: Path, inputs: Sequence[str], source: ImageSource, network: Network, **options: Any
    ) -> "Predictions":
        """Go on with a folder; the arguments are those of ``create``, and an option may be left out.

        Raises:
            UserError: There is none, or it is of something else.
        """
        if not (path / _CONFIG).is_file():
            raise UserError(f"{path} holds no predictions to go on with; leave --resume out")
        try:
            known = BulkConfig(**read_yaml(path / _CONFIG))
        except TypeError as error:
            raise UserError(
                f"{path / _CONFIG} is damaged, or of another version; choose another --output"
            ) from error
        chosen = {name: getattr(known, name) for name in ("topk", "batch_size", "chunk_size")} | options
        now = asdict(_describe(inputs, source, network, chosen))
        for name, what in _SAME.items():
            if (before := getattr(known, name)) != now[name]:
                raise UserError(
                    f"{path} was begun with others: {what} was {before} and is {now[name]}; give what it was,"
                    " or choose another --output"
                )
        lock = _lock(path)
        for entry in path.iterdir():
            if is_temporary(entry):  # of a process that was killed
                entry.unlink()
        return cls(path, BulkConfig(**now), source, lock)

    @property
    def chunks(self) -> int:
        """How many parts there will be."""
        return -(-self.config.images // self.config.chunk_size)

    def part(self, number: int) -> Path:
        """Return the file of a chunk."""
        return self.path / f"part-{number:06d}.parquet"

    @property
    def missing(self) -> list[int]:
        """The chunks that are not done yet."""
        return [number for number in range(self.chunks) if not self.part(number).exists()]

    def run(self, pool: Pool) -> Iterator[int]:
        """Predict what is missing; yield the number of images of each chunk once it is on the disk.

        Args:
            pool: Who computes.

        Raises:
            UserError: A network cannot be loaded, a part not be written, or a chunk ends its process again
                and again.
            Stopped: A signal came.
        """
        from xnext.deploy._parts import write_part  # Parquet's library takes long to import

        waiting, lost = deque(self.missing), Counter[int]()
        running: dict[Future[list[Row]], int] = {}
        with Interrupts() as interrupts:
            while waiting or running:
                while waiting and len(running) < pool.ahead:
                    number = waiting.popleft()
                    running[self._submit(pool, number)] = number
                done, _ = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED)
                if not done:
                    pool.check()
                for future in done:
                    number = running.pop(future)
                    rows = self._take(pool, future, number, lost)
                    if rows is None:
                        waiting.appendleft(number)
                        continue
                    write_part(self.part(number), rows)
                    yield len(rows)
                if interrupts.signal is not None:
                    raise Stopped(
                        f"stopped with {self.chunks - len(self.missing)} of {self.chunks} parts in"
                        f" {self.path}; go on with the same command and --resume",
                        interrupts.signal,
                    )
        write_atomic(self.path / _SUMMARY, (json.dumps(self._summary(), indent=2) + "\n").encode())

    def unreadable(self) -> list[str]:
        """Return the names of the images that could not be read."""
        from xnext.deploy._parts import read_unreadable

        return read_unreadable(map(self.part, range(self.chunks)))

    def close(self) -> None:
        """Let others write into the folder."""
        self._lock.close()

    def _summary(self) -> dict[str, int]:
        return {"images": self.config.images, "unreadable": len(self.unreadable())}

    def _span(self, number: int) -> tuple[int, int]:
        begin = number * self.config.chunk_size
        return begin, min(begin + self.config.chunk_size, self.config.images)

    def _submit(self, pool: Pool, number: int) -> "Future[list[Row]]":
        config, part = self.config, self.source.part(*self._span(number))
        return pool.submit(predict_chunk, self._network, part, config.topk, config.batch_size, pool.threads)

    def _take(
        self, pool: Pool, future: "Future[list[Row]]", number: int, lost: Counter[int]
    ) -> "list[Row] | None":
        """Return the rows of a chunk, or nothing if its process was killed and it is to be done again."""
        try:
            return future.result()
        except pool.lost as error:
            lost[number] += 1
            if lost[number] <= _MOST_LOST:
                return None
            begin, end = self._span(number)
            names = f"{self.source.name(begin)} to {self.source.name(end - 1)}"
            raise UserError(
                f"the process that looks at {names} was lost {lost[number]} times ({error}); give it more"
                " memory or remove what kills it, and go on with the same command and --resume"
            ) from error
        except CancelledError as error:
            raise UserError(
                f"{pool.name} is gone; go on with the same command and --resume once it is back"
            ) from error


def predict_chunk(
    network: Network, part: ImageSource, topk: int | None, batch_size: int, threads: int
) -> "list[Row]":
    """Return the row of each image of a chunk; called in a worker.

    Args:
        network: What looks at the images.
        part: The images.
        topk: As ``answer`` has it.
        batch_size: Images at once.
        threads: Of PyTorch on the CPU, and as many that read images.

    Raises:
        UserError: The network cannot be loaded, or there is too little memory.
    """
    torch.set_num_threads(threads)
    try:
        answers = answer(network.load(), part, topk, batch_size, threads)
        return [
            (part.name(index), (), said.reason)
            if isinstance(said, BadImageError)
            else (part.name(index), said, None)
            for index, said in enumerate(answers)
        ]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "too little memory to predict; use fewer --workers or a smaller --batch-size"
        ) from error


@lru_cache(maxsize=1)
def _load(network: Network) -> Classifier:
    checkpoint = Path(network.checkpoint)
    classifier = load_classifier(checkpoint, network.model)
    if _hash(checkpoint) != network.sha256:
        raise UserError(
            f"{checkpoint} holds other weights than when the predictions were begun, or than where they were"
        )
    return classifier


def _hash(checkpoint: Path) -> str:
    with weights_file(checkpoint).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(
    inputs: Sequence[str], source: ImageSource, network: Network, options: dict[str, Any]
) -> BulkConfig:
    return BulkConfig(
        inputs=tuple(inputs), images=len(source), images_sha256=source.fingerprint(),
        checkpoint=network.checkpoint, model=network.model, weights_sha256=network.sha256, **options,
    )  # fmt: skip


def _lock(path: Path) -> Any:
    try:
        return require_free_of(path, "a prediction")
    except OSError as error:
        raise write_error(path, error) from error


def _require_free(path: Path) -> None:
    """Refuse a folder that holds something, but for what a process leaves that was killed at its start."""
    try:
        taken = path.is_symlink() or path.exists()
        if taken and path.is_dir():
            taken = any(not is_temporary(entry) and entry.name != ".lock" for entry in path.iterdir())
    except OSError as error:
        raise write_error(path, error) from error
    if taken:
        raise UserError(f"{path} exists already; choose another --output, or go on with --resume")
