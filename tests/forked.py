"""Commands in processes forked from where trials are: what takes seconds to import is there already."""

import sys
from multiprocessing.process import BaseProcess

import torch

from xnext._workers import warm_up, without_script
from xnext.cli import main
from xnext.search.trial import PRELOAD


def begin(words: list[str]) -> BaseProcess:
    """Begin a command, with one thread for each trial, as there is in a test."""
    process = warm_up(PRELOAD).Process(target=_run, args=(words,))
    with without_script():
        process.start()
    return process


def _run(words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main(words))
