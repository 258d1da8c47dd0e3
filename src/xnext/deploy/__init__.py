"""Networks away from PyTorch: exported, quantised, checked against the original, and run.

What is imported here needs no PyTorch; ``xnext.deploy.export``, which writes the files, does.
"""

from xnext.deploy._artefact import Artefact, ArtefactError
from xnext.deploy._formats import FORMATS, is_artefact, read_artefact
from xnext.deploy._runtime import Runtime

__all__ = ["FORMATS", "Artefact", "ArtefactError", "Runtime", "is_artefact", "read_artefact"]
