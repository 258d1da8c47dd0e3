"""Training: one loop, its config, and the run directory that it leaves."""

from xnext.training.config import TrainConfig
from xnext.training.loop import train
from xnext.training.run import Run

__all__ = ["Run", "TrainConfig", "train"]
