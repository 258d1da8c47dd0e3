"""The formats there are, and which of them a file is of."""

from __future__ import annotations

import zipfile
from pathlib import Path

from xnext.deploy._artefact import Artefact, ArtefactError, Format, read_sealed
from xnext.deploy._onnx import ONNX
from xnext.deploy._openvino import OPENVINO
from xnext.deploy._pt2 import AOTI, TORCH

FORMATS: dict[str, Format] = {"onnx": ONNX, "openvino": OPENVINO, "torch": TORCH, "aoti": AOTI}


def is_artefact(path: Path) -> bool:
    """Return whether a file's name is that of an exported network."""
    return path.suffix in {format.ending for format in FORMATS.values()}


def read_artefact(path: Path) -> tuple[Artefact, Format]:
    """Return what an exported network says about itself, and its format; nothing of it is run.

    Raises:
        ArtefactError: There is none, it is damaged, or of another version.
    """
    if not path.is_file():
        what = f"{path} is a folder, not an exported file" if path.is_dir() else f"there is no file {path}"
        raise ArtefactError(what)
    if not is_artefact(path):
        endings = sorted({format.ending for format in FORMATS.values()})
        hint = "; an OpenVINO network is opened by its .xml" if path.suffix == ".bin" else ""
        raise ArtefactError(f"{path} is no exported network: its name must end in {', '.join(endings)}{hint}")
    content = read_sealed(path)
    reader = next(format for format in FORMATS.values() if format.ending == path.suffix)
    try:
        artefact = Artefact.from_json(reader.read(content), path)
    except (ValueError, StopIteration, IndexError, zipfile.BadZipFile) as error:
        raise ArtefactError(
            f"{path} is no {path.suffix} file of `xnext export`; if it was renamed give it its ending"
            " back, or export it again"
        ) from error
    if artefact.format not in FORMATS or FORMATS[artefact.format].ending != path.suffix:
        raise ArtefactError(f"{path} has damaged metadata: format {artefact.format!r}; export it again")
    return artefact, FORMATS[artefact.format]
