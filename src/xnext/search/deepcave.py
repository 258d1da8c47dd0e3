"""A search in the files that SMAC 2 writes, which DeepCAVE and SMAC's own tools open."""

import tempfile
from pathlib import Path
from typing import Any

from ConfigSpace import Configuration
from smac import Scenario
from smac.runhistory import RunHistory, StatusType

from xnext._files import make_folder, write_error
from xnext.search.history import History, Record
from xnext.search.smac import to_configspace
from xnext.search.trial import REJECTED, SUCCESS

_STATUS = {
    SUCCESS: StatusType.SUCCESS,
    REJECTED: StatusType.CRASHED,
    "timeout": StatusType.TIMEOUT,
    "out of memory": StatusType.MEMORYOUT,
}
"""SMAC's word for how a trial ended; for all others it is that it crashed."""


def write_smac(history: History, seed: int, folder: Path) -> None:
    """Write the trials that ended, as SMAC does after its own: ``FOLDER/SPACE/SEED/runhistory.json`` ...

    Each file is whole at any time.

    Args:
        history: The trials.
        seed: Of the search.
        folder: Where.

    Raises:
        UserError: A file cannot be written.
    """
    space = to_configspace(history.space, seed)
    trials = RunHistory(overwrite_existing_trials=True)
    for record in history.records:
        if record.status is not None:
            config = Configuration(space, values=dict(record.query.point), origin="xnext")
            trials.add(config, **_entry(record, seed))
    objectives = list(history.objectives) if len(history.objectives) > 1 else history.objectives[0]
    budgets = {record.query.epochs for record in history.records} or {0}
    try:
        make_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            scenario = Scenario(
                space, name=Path(history.space.name).stem, output_directory=Path(scratch),
                objectives=objectives, deterministic=True, seed=seed, min_budget=min(budgets),
                max_budget=max(budgets), n_trials=max(1, len(history.records)),
            )  # fmt: skip
            scenario._set_meta({"facade": {"name": "xnext"}})
            scenario.save()
            trials.save(scenario.output_directory / "runhistory.json")
            target = folder / scenario.output_directory.relative_to(scratch)
            make_folder(target)
            for file in scenario.output_directory.iterdir():
                file.replace(target / file.name)
    except OSError as error:
        raise write_error(folder, error) from error


def _entry(record: Record, seed: int) -> dict[str, Any]:
    """Return what a history of SMAC holds of a trial."""
    return {
        "cost": list(record.costs) if len(record.costs) > 1 else record.costs[0],
        "time": record.seconds,
        "status": _STATUS.get(record.status or "", StatusType.CRASHED),
        "seed": seed,
        "budget": float(record.query.epochs),
        "starttime": max(0.0, record.elapsed - record.seconds),
        "endtime": record.elapsed,
        "additional_info": {
            "trial": record.number, "status": record.status, "reason": record.reason, **record.values,
        },
    }  # fmt: skip
