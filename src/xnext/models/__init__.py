"""The networks of the three papers, each a value of its lineage's config, registered with timm."""

from xnext.models import metanext, nexception, xception
from xnext.models._checkpoints import (
    CheckpointError,
    LoadReport,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from xnext.models._registry import create_model, get_config, list_models
from xnext.models.metanext import MetaNeXt, MetaNeXtConfig
from xnext.models.nexception import NexceptionPyramid, NexceptionPyramidConfig
from xnext.models.xception import Xception, XceptionConfig

__all__ = [
    "CheckpointError",
    "LoadReport",
    "MetaNeXt",
    "MetaNeXtConfig",
    "NexceptionPyramid",
    "NexceptionPyramidConfig",
    "Xception",
    "XceptionConfig",
    "create_model",
    "get_config",
    "list_models",
    "load_checkpoint",
    "metanext",
    "nexception",
    "read_metadata",
    "save_checkpoint",
    "xception",
]
