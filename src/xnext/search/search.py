"""The search: asks an optimiser, runs trials, notes all in the journal, and goes on from it."""

import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from xnext._files import is_temporary, make_folder, write_atomic, write_error
from xnext._interrupts import Interrupts, Stopped
from xnext._workers import require_free_of, warm_up
from xnext.data import load_data, write_packed
from xnext.errors import UserError
from xnext.search.checks import check_device, check_images, check_networks
from xnext.search.config import SearchConfig
from xnext.search.history import History, Record
from xnext.search.journal import Journal
from xnext.search.optimizers import OPTIMIZERS, Optimizer, Task
from xnext.search.pool import Pool, open_pool
from xnext.search.space import Space
from xnext.search.trial import (
    FAILURES,
    PRELOAD,
    REJECTED,
    Outcome,
    Trial,
    TrialLost,
    supervise,
)

_MOST_LOST = 2  # times that a trial is asked again whose process was killed
_FAILED_AT_FIRST = 5  # trials, not all of which may have gone wrong; when it goes on, as many again
_REJECTED_AT_FIRST = 200  # trials, not all of which may be over a limit, since they cost next to nothing
_WHAT = "a search"
_DECODED = ".data.tmp"  # the images, until all of a search is there
_LENGTHS = ("trials", "hours")
_CHANGEABLE = (*_LENGTHS, "workers", "scheduler", "trial_minutes", "trial_memory")
_EXPORT_EVERY = 30.0  # seconds
_LOOK = 0.2  # seconds between two looks at signals and time
_GLANCE = 0.5  # seconds, of which `xnext search show` holds the lock for far less


class Search:
    """A search in a folder.

    Attributes:
        path: The folder.
        config: What it was told.
        exhausted: Whether its optimiser had nothing to ask for, when it was asked last.
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
        except UserError as error:
            raise UserError(f"{journal.path}: {error}") from error
        self._changes: Mapping[str, Any] = {}
        for entry in journal.entries[1:]:
            self._change(entry.get("resume", {}))
        self.history = History(self.space, self.config.objective, journal.entries[1:])
        asked = [entry for entry in journal.entries if entry.keys() & {"ask", "exhausted"}]
        self.exhausted = bool(asked) and "exhausted" in asked[-1]

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> "Search":
        """Decode the images into a new folder and begin the journal.

        Raises:
            UserError: The folder is taken, the images, the space or the cluster do not exist, or the networks
                or the images do not fit.
        """
        _require_empty(path)
        check_device(config)
        space = Space.load(config.space)
        if config.scheduler is None:
            warm_up(PRELOAD)  # while the images are decoded
        data = load_data(config.data, seed=config.seed)
        if data.multilabel:
            raise UserError(f"{config.data}: images of several classes are not searched for yet")
        preprocessing = check_networks(space, config, len(data.classes))
        with open_pool(config):
            pass  # a cluster that does not answer is told before anything is written
        make_folder(path)
        with require_free_of(path, _WHAT):
            _require_empty(path)  # now that no other search can begin there
            shutil.rmtree(path / _DECODED, ignore_errors=True)  # of one that was killed
            write_packed(data, preprocessing, path / _DECODED)
            check_images(data, path / _DECODED)
            content = {"space_content": space.content, "classes": data.classes}
            search = cls(path, Journal.create(path / "journal.jsonl", asdict(config) | content))
            search._name_data()
        return search

    def _name_data(self) -> None:
        """Give the decoded images their name, last of all that begins a search.

        Raises:
            UserError: The folder cannot be written.
        """
        decoded = self.path / _DECODED
        try:
            if decoded.exists():
                decoded.rename(self.path / "data")
        except OSError as error:
            raise write_error(decoded, error) from error

    def _require_data(self) -> None:
        """Refuse to go on without the decoded images, since each trial would fail.

        Raises:
            UserError: As said.
        """
        try:
            load_data(f"packed:{self.path / 'data'}")
        except UserError as error:
            raise UserError(
                f"{self.path / 'data'}, the decoded images of the search, is missing or damaged; put it back,"
                " or begin another search"
            ) from error

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
            require_free_of(self.path, _WHAT).close()
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
            UserError: All of the first trials went wrong or were rejected, the workers are no more, another
                process has gone on with it, or the disk is full.
            Stopped: A signal came; the trials under way have saved what they had.
        """
        check_device(self.config)
        lock = require_free_of(self.path, _WHAT, patience=_GLANCE)
        try:
            self._journal.require_current()
            self._journal.repair()
            self._name_data()  # if a kill came just before
            self._require_data()
            if self._changes:
                self._journal.append(resume=self._changes)
            if self.config.scheduler is None:
                warm_up(PRELOAD)
            optimizer = self._replay()
            with open_pool(self.config) as pool, Interrupts() as interrupts:
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
            if entry.keys() & {"ask", "exhausted"}:
                query = optimizer.ask()
                asked = (dict(query.point), query.epochs) if query is not None else None
                if asked != ((entry["point"], entry["epochs"]) if "ask" in entry else None):
                    number = entry.get("ask", entry.get("exhausted"))
                    raise UserError(
                        f"{self._journal.path}: {config.optimizer} now asks for something else than trial"
                        f" {number}; go on with the versions of the libraries that it was begun with"
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
            limits=config.limits,
            latency="latency_ms" in config.objective or "latency_ms" in config.limits,
            training=training,
            seconds=None if config.trial_minutes is None else 60 * config.trial_minutes,
            memory_gib=config.trial_memory,
            device=slot % gpus if gpus else None,
            threads=max(1, torch.get_num_threads() // config.workers),
        )


def _require_empty(path: Path) -> None:
    """Refuse to begin a search where anything is, but for what one that was killed at its start leaves.

    Raises:
        UserError: As said.
    """
    try:
        names = {entry.name for entry in path.iterdir() if not is_temporary(entry)} - {".lock"}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cannot begin a search in {path}: {error.strerror}; choose another --output"
        ) from error
    if "journal.jsonl" in names:
        raise UserError(f"{path} exists already; choose another --output, or go on with --resume")
    if "networks" in names:
        raise UserError(
            f"{path} holds networks of a search whose journal is missing; choose another --output, or"
            " delete it"
        )
    if names:
        raise UserError(f"{path} is not empty; choose another --output")


class _Round:
    """One process's part of a search: from its start to its end."""

    def __init__(
        self,
        search: Search,
        journal: Journal,
        optimizer: Optimizer,
        pool: Pool,
        interrupts: Interrupts,
        watch: Callable[[Search, Record], None],
    ) -> None:
        self._search, self._journal, self._optimizer = search, journal, optimizer
        self._pool, self._cancelled = pool, pool.cancelled
        self._interrupts, self._watch = interrupts, watch
        self._history = search.history
        self._running: dict[Future[Outcome], tuple[Record, int]] = {}
        self._slots = list(range(search.config.workers))
        self._waiting = [record for record in self._history.records if record.status is None]
        self._nothing_left = False
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
                self._pool.require()
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
        if self._nothing_left:  # until another trial is told, when there may be something again
            return None
        query = self._optimizer.ask()
        self._search.exhausted = self._nothing_left = query is None
        if query is None:
            self._journal.append(exhausted=len(self._history.records))
            return None
        record = self._history.asked(query)
        self._journal.append(ask=record.number, point=dict(query.point), epochs=query.epochs)
        return record

    def _submit(self, record: Record) -> None:
        slot = self._slots.pop(0)
        arguments = () if self._search.config.scheduler else (self._cancelled,)
        future = self._pool.executor.submit(supervise, self._search.trial(record, slot), *arguments)
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
        self._nothing_left = False
        self._watch(self._search, record)
        if time.monotonic() - self._exported > _EXPORT_EVERY:
            self._search.export()
            self._exported = time.monotonic()
        self._check_first(record)

    def _check_first(self, last: Record) -> None:
        """End a search that cannot come to anything; if it goes on, let it try as much again.

        Args:
            last: The trial that has just ended.

        Raises:
            UserError: Each of its first trials went wrong, or was rejected.
        """
        ended = [record for record in self._history.records if record.status is not None]
        trained = [record for record in ended if record.status != REJECTED]
        if not trained and len(ended) % _REJECTED_AT_FIRST == 0:
            limits = "; ".join(
                f"{name}<={most:,.10g}: the smallest has {min(one.values[name] for one in ended):,.10g}"
                for name, most in self._search.config.limits.items()
            )
            raise UserError(
                f"each of the first {len(ended)} networks is over a limit ({limits}); begin another search"
                " with higher ones, or look further with --resume"
            )
        failed = last.status in FAILURES and all(record.status in FAILURES for record in trained)
        if failed and len(trained) % _FAILED_AT_FIRST == 0:
            raise UserError(
                f"each of the first {len(trained)} trials went wrong, the last one so: {last.status}"
                f" ({last.reason}); see {self._search.trial(last, 0).log}"
            )

    def _stop(self) -> None:
        """Let the trials under way save what they have, and end; those of a cluster go on there."""
        self._cancelled.set()
        wait(self._running, timeout=0 if self._search.config.scheduler else None)
        for future in filter(Future.done, list(self._running)):
            self._take(future)
        raise Stopped(
            f"stopped after {self._history.finished} trials; go on with: xnext search --resume"
            f" --output {shlex.quote(str(self._search.path))}",
            self._interrupts.signal or 0,
        )


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
