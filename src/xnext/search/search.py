"""The search: asks an optimiser, runs trials, notes all in the journal, and goes on from it."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from xnext._files import make_folder, write_atomic
from xnext._types import check_types
from xnext.data import ImageData, PackedSource, Preprocessing, load_data, write_packed
from xnext.errors import UserError, is_out_of_memory, shorten, suggest
from xnext.models._registry import create_variant
from xnext.search.history import History, Record
from xnext.search.journal import Journal
from xnext.search.optimizers import OPTIMIZERS, Optimizer, Task
from xnext.search.space import Space
from xnext.search.trial import FAILURES, SIZES, Outcome, Trial, TrialLost, require_free_of, supervise, warm_up
from xnext.training.interrupts import Interrupts, Stopped

OBJECTIVES = ("top1", *SIZES)
"""What can be searched for: the highest accuracy, or the lowest of the others."""

_MOST_LOST = 2  # times that a trial is asked again whose process was killed
_FAILED_AT_FIRST = 5  # trials, of which none may have gone wrong in every case
_LENGTHS = ("trials", "hours")
_CHANGEABLE = (*_LENGTHS, "workers", "scheduler", "trial_minutes", "trial_memory")
_EXPORT_EVERY = 30.0  # seconds
_MOST_BAD = 0.01  # share of images that cannot be read, as in a training
_LOOK = 0.2  # seconds between two looks at signals and time
_GLANCE = 0.5  # seconds, of which `xnext search show` holds the lock for far less


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything that decides a search.

    Attributes:
        data: Images to search for, as `xnext train` takes them.
        space: Where to look: nexception, union, or a YAML file of choices.
        trials: Trials to make; default: until the time is over.
        hours: Hours to search; default: until the trials are done.
        min_epochs: Epochs of the shortest trials, of which the best go on.
        max_epochs: Epochs of the longest trials.
        objective: What to search for: top1 and any of latency_ms, macs and params, which are to be low.
        limit: What no network may exceed, as `latency_ms<=5` or `params<=1e6`.
        workers: Trials at a time.
        scheduler: Address of a Dask scheduler whose workers run the trials, `tcp://HOST:PORT`; default: this
            machine.
        optimizer: Who decides what to try: smac, random or evolution.
        width: Factor of all numbers of channels in the search; the winner has them all.
        image_size: Side of the square images in pixels.
        batch_size: Images a step.
        seed: Start of every random choice.
        trial_minutes: Most minutes of a trial; default: no limit.
        trial_memory: Most GiB of memory of a trial, on the host and on the device each; default: no limit.
        device: Where to train: auto (a GPU if there is one), cpu or cuda.
        amp: Mixed precision: off, bf16 or fp16.
    """

    data: str
    space: str = "nexception"
    trials: int | None = None
    hours: float | None = None
    min_epochs: int = 1
    max_epochs: int = 9
    objective: tuple[str, ...] = ("top1",)
    limit: tuple[str, ...] = ()
    workers: int = 1
    scheduler: str | None = None
    optimizer: str = "smac"
    width: float = 0.25
    image_size: int = 32
    batch_size: int = 64
    seed: int = 0
    trial_minutes: float | None = None
    trial_memory: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("trials", "min_epochs", "max_epochs", "workers", "image_size", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        for name in ("hours", "width", "trial_minutes", "trial_memory"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value}; it must be more than 0")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and less than 2^32")
        if self.trials is None and self.hours is None:
            raise UserError("say how long to search: --trials N or --hours H")
        if self.min_epochs > self.max_epochs:
            raise UserError(f"min_epochs {self.min_epochs} is more than max_epochs {self.max_epochs}")
        if "top1" not in self.objective:
            raise UserError("objective must have top1, without which the smallest network is the best")
        for name in self.objective:
            if name not in OBJECTIVES:
                raise UserError(
                    f"unknown objective {name!r}.{suggest(name, OBJECTIVES) or _choose(OBJECTIVES)}"
                )
        if len(set(self.objective)) < len(self.objective):
            raise UserError("an objective stands twice")
        if self.optimizer not in OPTIMIZERS:
            hint = suggest(self.optimizer, OPTIMIZERS) or _choose(OPTIMIZERS)
            raise UserError(f"unknown optimizer {self.optimizer!r}.{hint}")
        if self.scheduler is not None and "://" not in self.scheduler:
            raise UserError(f"scheduler {self.scheduler!r} is no address; give tcp://HOST:PORT")
        _ = self.limits

    @property
    def limits(self) -> dict[str, float]:
        """The limits, by what they limit.

        Raises:
            UserError: One is not understood.
        """
        limits = {}
        for text in self.limit:
            name, sign, number = text.partition("<=")
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if name.strip() not in SIZES or not sign or not 0 < value < float("inf"):
                raise UserError(
                    f"limit {text!r} is not understood; write latency_ms<=5, macs<=1e8 or params<=1e6"
                )
            if name.strip() in limits:
                raise UserError(f"limit {name.strip()} is given twice; keep the one that is meant")
            limits[name.strip()] = value
        return limits


def _choose(names: Any) -> str:
    return f" Choose from {', '.join(names)}."


class Search:
    """A search in a folder.

    Attributes:
        path: The folder.
        config: What it was told.
        exhausted: Whether its optimiser has nothing left to ask for.
        space: Where it looks.
        history: What came of it so far.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self._journal = journal
        settings = dict(journal.entries[0]["settings"])
        self.classes = tuple(settings.pop("classes"))
        self.space = Space(settings["space"], settings.pop("space_content"))
        try:
            self.config = SearchConfig(**settings)
        except TypeError as error:
            raise UserError(f"{journal.path}: its settings are of another version of xnext") from error
        self._changes: Mapping[str, Any] = {}
        for entry in journal.entries[1:]:
            self._change(entry.get("resume", {}))
        self.history = History(self.space, self.config.objective, journal.entries[1:])
        self.exhausted = any("exhausted" in entry for entry in journal.entries)

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> "Search":
        """Decode the images into a new folder and begin the journal.

        Raises:
            UserError: The folder is taken, the images, the space or the cluster do not exist, or the images
                do not fit.
        """
        if path.exists() and (not path.is_dir() or (path / "journal.jsonl").exists()):
            raise UserError(f"{path} exists already; choose another --output, or go on with --resume")
        if (path / "networks").exists():
            raise UserError(
                f"{path} holds networks of a search whose journal is missing; choose another --output, or"
                " delete it"
            )
        _check_device(config)
        space = Space.load(config.space)
        if config.scheduler is None:
            warm_up()  # while the images are decoded
        data = load_data(config.data, seed=config.seed)
        if data.multilabel:
            raise UserError(f"{config.data}: images of several classes are not searched for yet")
        preprocessing = _preprocessing(space, config, data)
        with executor(config):
            pass  # a cluster that does not answer is told before anything is written
        make_folder(path)
        write_packed(data, preprocessing, path / "data")
        _check_images(data, path / "data")
        content = {"space_content": space.content, "classes": data.classes}
        return cls(path, Journal.create(path / "journal.jsonl", asdict(config) | content))

    @classmethod
    def open(cls, path: Path) -> "Search":
        """Return the search in a folder.

        Raises:
            UserError: There is none, or its journal is damaged.
        """
        journal = Journal.open(path / "journal.jsonl")
        try:
            return cls(path, journal)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{journal.path} is damaged: a line is missing or altered ({type(error).__name__}: {error});"
                " begin another search"
            ) from error

    @property
    def is_running(self) -> bool:
        """Whether a process is searching there now."""
        try:
            require_free_of(self.path).close()
        except UserError:
            return True
        return False

    def resume(self, options: Mapping[str, Any]) -> None:
        """Take what a search is told when it goes on: how long, and where its trials run.

        Args:
            options: Fields of the config; others than these must be as they were.

        Raises:
            UserError: Another one differs: its trials would not be comparable, or not those of one search.
        """
        for name, value in options.items():
            value = tuple(value) if isinstance(value, list) else value
            if name not in _CHANGEABLE and value != (before := getattr(self.config, name)):
                raise UserError(
                    f"{name} was {before!r} when {self.path} was begun, and cannot become {value!r}; leave it"
                    " out, or begin another search"
                )
        changes = {name: value for name, value in options.items() if name in _CHANGEABLE}
        if not changes.keys().isdisjoint(_LENGTHS):  # of the two, the one that was not given limits no more
            changes |= {name: changes.get(name) for name in _LENGTHS}
        self._change(changes)
        self._changes = changes

    def _change(self, changes: Mapping[str, Any]) -> None:
        self.config = replace(self.config, **changes)

    def run(self, watch: Callable[["Search", Record], None] = lambda *_: None) -> None:
        """Make trials until all that were wanted are made.

        Args:
            watch: Called with each trial that ended.

        Raises:
            UserError: All of the first trials went wrong, the workers are no more, or the disk is full.
            Stopped: A signal came; the trials under way have saved what they had.
        """
        _check_device(self.config)
        lock = require_free_of(self.path, patience=_GLANCE)
        try:
            self._journal.repair()
            if self._changes:
                self._journal.append(resume=self._changes)
            if self.config.scheduler is None:
                warm_up()
            optimizer = self._replay()
            with executor(self.config) as pool, Interrupts() as interrupts:
                _Round(self, self._journal, optimizer, pool, interrupts, watch).run()
        finally:
            lock.close()

    def export(self) -> None:
        """Write the trials as SMAC does, for DeepCAVE, where SMAC is installed.

        Raises:
            UserError: The folder cannot be written.
        """
        try:
            from xnext.search.deepcave import write_smac
        except ImportError:
            return
        write_smac(self.history, self.config.seed, self.path / "smac")

    def _replay(self) -> Optimizer:
        """Return the optimiser in the state in which the journal left it.

        Raises:
            UserError: It asks for something else than it did then.
        """
        config = self.config
        task = Task(
            space=self.space, min_epochs=config.min_epochs, max_epochs=config.max_epochs,
            objectives=config.objective, seed=config.seed,
        )  # fmt: skip
        optimizer = OPTIMIZERS[config.optimizer](task)
        for entry in self._journal.entries[1:]:
            if "ask" in entry:
                query = optimizer.ask()
                if query is None or (dict(query.point), query.epochs) != (entry["point"], entry["epochs"]):
                    raise UserError(
                        f"{self._journal.path}: {config.optimizer} now asks for something else than trial"
                        f" {entry['ask']}; go on with the versions of the libraries that it was begun with"
                    )
            elif "tell" in entry:
                record = self.history.records[entry["tell"]]
                optimizer.tell(record.query, entry["costs"])
        return optimizer

    def trial(self, record: Record, slot: int) -> Trial:
        """Return what the process of a trial is told.

        Args:
            record: The trial.
            slot: Which of the workers runs it.
        """
        config = self.config
        architecture = self.space.architecture(record.query.point, config.width)
        gpus = torch.cuda.device_count() if config.device != "cpu" and config.scheduler is None else 0
        training = {
            name: getattr(config, name) for name in ("batch_size", "image_size", "seed", "device", "amp")
        }
        return Trial(
            number=record.number,
            folder=str(self.path.absolute() / "networks" / f"{record.network:05d}"),
            model=architecture.model,
            model_args=architecture.model_args,
            data=str(self.path.absolute() / "data"),
            epochs=record.query.epochs,
            max_epochs=config.max_epochs,
            classes=len(self.classes),
            limits=config.limits,
            latency="latency_ms" in config.objective or "latency_ms" in config.limits,
            training=training,
            seconds=None if config.trial_minutes is None else 60 * config.trial_minutes,
            memory_gib=config.trial_memory,
            device=slot % gpus if gpus else None,
            threads=max(1, (os.cpu_count() or 1) // config.workers),
        )


class _Round:
    """One process's part of a search: from its start to its end."""

    def __init__(
        self,
        search: Search,
        journal: Journal,
        optimizer: Optimizer,
        pool: tuple[Executor, Any],
        interrupts: Interrupts,
        watch: Callable[[Search, Record], None],
    ) -> None:
        self._search, self._journal, self._optimizer = search, journal, optimizer
        self._pool, self._cancelled = pool
        self._interrupts, self._watch = interrupts, watch
        self._history = search.history
        self._running: dict[Future[Outcome], tuple[Record, int]] = {}
        self._slots = list(range(search.config.workers))
        self._waiting = [record for record in self._history.records if record.status is None]
        self._earlier = self._history.elapsed
        self._started = self._exported = time.monotonic()

    @property
    def _elapsed(self) -> float:
        return self._earlier + time.monotonic() - self._started

    def run(self) -> None:
        """Fill the workers and take in what they bring, until there is nothing more to do."""
        try:
            while True:
                while self._slots and (record := self._next()) is not None:
                    self._submit(record)
                if not self._running:
                    return
                done, _ = wait(self._running, timeout=_LOOK, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: self._running[future][0].number):
                    self._take(future)
                if self._interrupts.signal is not None:
                    self._stop()
        finally:
            self._cancelled.set()
            self._search.export()

    def _next(self) -> Record | None:
        """Return a trial to make now, or None."""
        config = self._search.config
        if self._waiting:
            return self._waiting.pop(0)
        if config.trials is not None and len(self._history.records) >= config.trials:
            return None
        if config.hours is not None and self._elapsed > 3600 * config.hours:
            return None
        query = self._optimizer.ask()
        if query is None:
            if not self._search.exhausted:
                self._search.exhausted = True
                self._journal.append(exhausted=len(self._history.records))
            return None
        record = self._history.asked(query)
        self._journal.append(ask=record.number, point=dict(query.point), epochs=query.epochs)
        return record

    def _submit(self, record: Record) -> None:
        slot = self._slots.pop(0)
        arguments = () if self._search.config.scheduler else (self._cancelled,)
        future = self._pool.submit(supervise, self._search.trial(record, slot), *arguments)
        self._running[future] = record, slot

    def _take(self, future: Future[Outcome]) -> None:
        """Note how a trial ended, or ask for it again if its process was lost."""
        record, slot = self._running.pop(future)
        self._slots.append(slot)
        try:
            outcome = future.result()
        except UserError:
            raise
        except Exception as error:  # of the process, or of the worker that had it
            if self._cancelled.is_set():
                return
            record.lost += 1
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, TrialLost) else str(error)
            self._journal.append(lost=record.number, reason=reason)
            if record.lost <= _MOST_LOST:
                self._waiting.insert(0, record)
                return
            outcome = Outcome(
                status="crashed", values={}, reason=f"its process {reason}, {record.lost} times"
            )
        costs = self._history.told(record, outcome, self._elapsed)
        self._journal.append(
            tell=record.number, costs=costs, elapsed=round(self._elapsed, 3), **asdict(outcome)
        )
        self._optimizer.tell(record.query, costs)
        self._watch(self._search, record)
        if time.monotonic() - self._exported > _EXPORT_EVERY:
            self._search.export()
            self._exported = time.monotonic()
        self._check_first()

    def _check_first(self) -> None:
        """End a search that cannot come to anything.

        Raises:
            UserError: Each of its first trials went wrong.
        """
        ended = [record for record in self._history.records if record.status is not None]
        if len(ended) == _FAILED_AT_FIRST and all(record.status in FAILURES for record in ended):
            last = ended[-1]
            raise UserError(
                f"each of the first {len(ended)} trials went wrong, the last one so: {last.status}"
                f" ({last.reason}); see {self._search.trial(last, 0).log}"
            )

    def _stop(self) -> None:
        """Let the trials under way save what they have, and end."""
        self._cancelled.set()
        wait(self._running)
        for future in list(self._running):
            self._take(future)
        raise Stopped(
            f"stopped after {self._history.finished} trials; go on with: xnext search --resume"
            f" --output {self._search.path}",
            self._interrupts.signal or 0,
        )


@contextmanager
def executor(config: SearchConfig) -> Iterator[tuple[Executor, Any]]:
    """Yield where trials are submitted, and the event that cancels those on this machine.

    Raises:
        UserError: There is no such scheduler.
    """
    cancelled = threading.Event()
    if config.scheduler is None:
        with ThreadPoolExecutor(config.workers) as pool:
            try:
                yield pool, cancelled
            finally:
                cancelled.set()
        return
    from xnext.search.cluster import connect

    with connect(config.scheduler) as pool:
        yield pool, cancelled


def _check_device(config: SearchConfig) -> None:
    """Refuse a GPU where there is none.

    Raises:
        UserError: As said.
    """
    if config.device == "cuda" and config.scheduler is None and not torch.cuda.is_available():
        raise UserError("device cuda: PyTorch finds no GPU here; use auto or cpu")


def _check_images(data: ImageData, folder: Path) -> None:
    """Refuse a set of which too many images could not be decoded, of which each trial would complain.

    Raises:
        UserError: The line names them; the folder is gone.
    """
    packed = load_data(f"packed:{folder}")
    for part, source, origin in (("training", packed.train, data.train), ("held-out", packed.val, data.val)):
        bad = [] if not isinstance(source, PackedSource) else sorted(source.packed.bad_images)
        if len(bad) > _MOST_BAD * len(source):
            shutil.rmtree(folder)
            names = shorten([origin.name(index) for index in bad])
            raise UserError(
                f"{data.name}: {len(bad)} of {len(source)} {part} images cannot be read ({names}); mend or"
                " remove them"
            )


def _preprocessing(space: Space, config: SearchConfig, data: ImageData) -> Preprocessing:
    """Return how images come to the networks, of which all are alike in that."""
    architecture = space.architecture(next(space.points()), config.width)
    try:
        network = create_variant(architecture.model, architecture.model_args, num_classes=len(data.classes))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"width {config.width:g} makes networks that do not fit into the memory") from error
    return Preprocessing.for_model(network, config.image_size, crop_pct=1.0)


def write_best(search: Search, path: Path) -> Record:
    """Write the best network of a search at full size, as `xnext train --model` takes it.

    Raises:
        UserError: No trial has succeeded, or the file cannot be written.
    """
    record = search.history.best
    if record is None:
        raise UserError(f"{search.path}: no trial has succeeded yet; let the search go on")
    architecture = search.space.full_size(record.query.point)
    content = {"model": architecture.model, "model_args": dict(architecture.model_args)}
    write_atomic(path, yaml.safe_dump(content, sort_keys=False).encode())
    return record


def point_line(point: Mapping[str, str]) -> str:
    """Return a point in a line."""
    return ", ".join(f"{choice} {value}" for choice, value in point.items())
