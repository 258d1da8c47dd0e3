"""Weight files: our own safetensors with everything inside, and every published layout.

Nothing is unpickled but tensors: a file that needs more is refused.
"""

import json
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from xnext._files import write_atomic
from xnext._version import __version__
from xnext.errors import UserError, shorten
from xnext.models._layouts import LAYOUTS, recognise
from xnext.models.layers import BlurPool2d

_logger = logging.getLogger("xnext")
_METADATA_KEY = "xnext"
_METADATA_TYPES = {"model_name": str, "model_args": dict, "classes": list, "preprocessing": dict}
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Where training scripts put the weights; the averaged ones are those that were published.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What DataParallel, torch.compile and Lightning put before every name, in any order.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_CLASSIFIER = ("head.fc.weight", "head.fc.bias")


class CheckpointError(UserError):
    """A weight file that cannot be read, or that does not fit the network."""


@dataclass(frozen=True)
class LoadReport:
    """What loading a checkpoint did."""

    source: str
    """File name, or "state dict"."""
    layout: str
    """Name of the published layout, or "xnext"."""
    new_classes: tuple[int, int] | None = None
    """Classes of the file and of the network, if they differ and the classifier was left as initialised."""
    kept_counters: tuple[str, ...] = ()
    """Batch counters that the file lacks, as those from before PyTorch 0.4.1; no result depends on them."""

    def __str__(self) -> str:
        """Say it in one line."""
        line = f"loaded {self.source} ({self.layout} layout)"
        if self.new_classes:
            theirs, ours = self.new_classes
            line += f"; the classifier is new, since the file has {theirs} classes, not {ours}"
        if self.kept_counters:
            line += f"; without {shorten(self.kept_counters)}"
        return line


def save_checkpoint(
    path: Path,
    model: nn.Module,
    *,
    model_name: str,
    model_args: Mapping[str, Any],
    classes: tuple[str, ...],
    preprocessing: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write weights with all that is needed to use them, whole or not at all.

    Args:
        path: The ``.safetensors`` file.
        model: The network.
        model_name: Its registered name.
        model_args: Fields of its config that differ from the name's, JSON values.
        classes: Class names in the order of the logits.
        preprocessing: How an image becomes an input, JSON values.
        extra: More JSON values to keep, such as accuracy and epoch.

    Raises:
        UserError: The file cannot be written.
    """
    metadata = {
        "model_name": model_name,
        "model_args": dict(model_args),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "extra": dict(extra or {}),
        "version": __version__,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"format": "pt", _METADATA_KEY: json.dumps(metadata)}
    write_atomic(Path(path), safetensors.torch.save(tensors, header))


def read_metadata(path: Path | str) -> dict[str, Any] | None:
    """Return what ``save_checkpoint`` wrote beside the weights, or None for a file from elsewhere.

    Raises:
        CheckpointError: The file cannot be read.
    """
    path = Path(path)
    check_readable(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {_first_line(error)}") from error
    if not text:
        return None
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}") from error
    if not isinstance(metadata, dict) or any(
        not isinstance(metadata.get(key), kind) for key, kind in _METADATA_TYPES.items()
    ):
        raise CheckpointError(f"{path} has damaged metadata: it must hold {', '.join(_METADATA_TYPES)}")
    if not all(isinstance(name, str) for name in metadata["classes"]):
        raise CheckpointError(f"{path} has damaged metadata: its classes must be names")
    return metadata


def load_checkpoint(model: nn.Module, path_or_state_dict: Path | str | Mapping[str, Any]) -> LoadReport:
    """Load weights of any known layout into ``model``, exactly.

    The layout is recognised by its keys: timm's InceptionNeXt and ``legacy_xception``, the files of the
    InceptionNeXt authors (networks and ConvNeXt variants) and of the NEXcepTion authors, ConvNeXt's
    isotropic network, and our own; bare or under ``state_dict``, with ``module.`` prefixes or without. A
    classifier for another number of classes is left as initialised, which the report says.

    Args:
        model: A network of this project.
        path_or_state_dict: A ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file, or its content.

    Returns:
        What was done.

    Raises:
        CheckpointError: The file cannot be read safely, or its tensors do not fit; all misfits are listed.
    """
    if isinstance(path_or_state_dict, Mapping):
        source = "state dict"
        layout, state = _to_our_layout(path_or_state_dict, source)
    else:
        source = str(path_or_state_dict)
        layout, state = read_weights(Path(path_or_state_dict))
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise CheckpointError("the network is on the meta device; call model.to_empty(device=...) first")
    new_classes = _drop_other_classifier(state, own)
    # Checked below, so that a missing counter keeps its value.
    counters = tuple(key for key in own if key.endswith("num_batches_tracked") and key not in state)
    _check_fit(state, own, source, ignored=(*counters, *(_CLASSIFIER if new_classes else ())))
    model.load_state_dict(state, strict=not new_classes)
    for module in model.modules():
        if isinstance(module, BlurPool2d):  # its kernel is in no file, and unknown after to_empty
            module.init_non_persistent_buffers()
    report = LoadReport(source, layout, new_classes, counters)
    if new_classes:
        _logger.warning("%s", report)
    return report


def convert_state_dict(state: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Rename and reshape a state dict of any known layout to ours.

    Args:
        state: Tensors by name, as published or ours.
        model: Taken for timm's sake, which passes the network.
    """
    return _to_our_layout(state, "state dict")[1]


def read_weights(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the layout of a weight file and its tensors by our names; nothing but tensors is unpickled.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or needs more than tensors.
    """
    return _to_our_layout(_read(path), str(path))


def load_unchanged(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights that have the names of ``model`` already, as those of timm's own networks do.

    Args:
        model: Any network.
        state: Its tensors, as ``read_tensors`` returns them.
        source: Where they come from.

    Raises:
        CheckpointError: They do not fit; all misfits are listed.
    """
    _check_fit(state, model.state_dict(), source, ignored=())
    model.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by its own names.

    Raises:
        CheckpointError: As ``read_weights``.
    """
    return _unwrap(_read(path), str(path))


def _read(path: Path) -> Any:
    """Return what a weight file holds; nothing but tensors is unpickled."""
    check_readable(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remark on pickle protocols that it reads all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if needs := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} is refused: it needs {needs[1]}, and unpickling more than tensors could run code; "
                "save its state dict alone"
            ) from error
        raise CheckpointError(
            f"{path} is damaged, or pickled in a way that cannot be read safely; fetch it again, or save its "
            "state dict with torch.save or safetensors"
        ) from error
    except Exception as error:  # what damaged bytes lead the readers to is without bounds
        raise CheckpointError(
            f"{path} is damaged or no weight file ({type(error).__name__}: {_first_line(error)})"
        ) from error


def check_readable(path: Path) -> None:
    """Check that a path is a file with a weight file's ending, and not empty.

    Raises:
        CheckpointError: It is not.
    """
    if not path.exists():
        raise CheckpointError(f"there is no weight file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a weight file")
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(f"{path} is no weight file: its name must end in one of {', '.join(_SUFFIXES)}")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty; fetch it again")


def _to_our_layout(content: Any, source: str) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the layout and the tensors, renamed and reshaped to ours."""
    state = _unwrap(content, source)
    layout = recognise(state)
    return (layout, LAYOUTS[layout][1](state)) if layout else ("xnext", state)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """Find the tensors in what a training script saved, without the prefix of a parallel wrapper."""
    while isinstance(content, Mapping) and (
        key := next((k for k in _WRAPPERS if _holds_state(content, k)), None)
    ):
        content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{source} holds no state dict")
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{source} holds no state dict: {shorten(others)} are no tensors")
    state = {str(key): value for key, value in content.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _holds_state(content: Mapping[str, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping) and bool(content[key])


def _drop_other_classifier(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Remove a classifier for another number of classes from ``state``; return both numbers."""
    name = _CLASSIFIER[0]
    if name not in state:
        return None
    theirs, ours = (
        state[name].shape,
        own[name].shape if name in own else torch.Size([0, *state[name].shape[1:]]),
    )
    if theirs[1:] != ours[1:] or theirs[0] == ours[0]:
        return None
    for key in _CLASSIFIER:
        state.pop(key, None)
    return theirs[0], ours[0]


def _check_fit(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, ignored: tuple[str, ...]
) -> None:
    """Raise a ``CheckpointError`` that lists every key that is missing, unexpected or of the wrong kind."""
    shared = [key for key in own if key in state]
    if not shared:
        raise CheckpointError(
            f"{source} does not fit the network: it is of another one, with no name in common"
        )
    floats = [key for key in shared if own[key].is_floating_point()]
    problems = {
        "missing": [key for key in own if key not in state and key not in ignored],
        "unexpected": [key for key in state if key not in own],
        "wrong shape": [
            f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
            for key in shared
            if state[key].shape != own[key].shape
        ],
        "wrong type": [
            f"{key} is {state[key].dtype}" for key in floats if not state[key].is_floating_point()
        ],
        "not finite": [
            key for key in floats if state[key].is_floating_point() and not state[key].isfinite().all()
        ],
    }
    found = [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{source} does not fit the network; {'; '.join(found)}")
