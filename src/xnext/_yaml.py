"""The one way this project reads YAML."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from xnext.errors import UserError


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        UserError: It cannot be read or holds something else.
    """
    try:
        # YAML 1.2, where `off` is a word, 1e-3 a number, and no key stands twice.
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except DuplicateKeyError as error:
        key = re.sub('^found duplicate key "(.*)" with value ".*', r"\1", error.problem, flags=re.DOTALL)
        raise UserError(
            f"{path}: line {error.problem_mark.line + 1}: duplicate key {key!r}; keep the one that is meant"
        ) from error
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path} is no YAML: {line}{error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # no text, a number too long, too many brackets
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of `key: value`, as the config.yaml of a run does")
    return content
