"""jsonargparse as the command line needs it: dashed options, one-line errors, flags above a config file."""

import dataclasses
import itertools
import json
import re
import types
import typing
from argparse import ONE_OR_MORE, SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, DefaultHelpFormatter

from xnext._types import describe_type
from xnext._yaml import read_yaml
from xnext.errors import UserError, suggest


class _Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """An option's line is its own text and its default; the examples below keep their line breaks."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        if not action.option_strings or action.nargs == 0 or action.default in (None, {}, "==SUPPRESS=="):
            return text
        return f"{text} (default: %(default)s)"


def yes_no() -> ActionYesNo:
    """Return what makes an option of two, `--this` and `--no-this`."""
    return ActionYesNo(yes_prefix="", no_prefix="no-")


class Parser(ArgumentParser):
    """A parser whose every complaint is one line, raised as a ``UserError``."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=_Help, allow_abbrev=False, print_config=None, **kwargs)
        self._verbs: dict[str, Parser] = {}

    def add_verbs(self, verbs: Mapping[str, "Parser"]) -> None:
        """Add a command for each parser, which reads the words after it; the result's `verb` tells which."""
        commands = self.add_subcommands(dest="verb", required=True, metavar="COMMAND", title="commands")
        for name, parser in verbs.items():
            commands.add_subcommand(name, parser, help=parser.description)
            parser.prog = f"{self.prog} {name}"
        self._verbs.update(verbs)

    def add_options(
        self,
        config: type,
        without: Sequence[str] = (),
        metavars: Mapping[str, str] = types.MappingProxyType({}),
        *,
        names: Mapping[str, str] = types.MappingProxyType({}),
        texts: Mapping[str, str] = types.MappingProxyType({}),
        given: bool = False,
    ) -> None:
        """Add an option for every field of a dataclass, explained by the ``Attributes`` of its docstring.

        Args:
            config: The dataclass.
            without: Fields that get none.
            metavars: What stands for the value of a field in the help, where its type does not say enough.
            names: How the option of a field is called, where not as the field.
            texts: What explains the option of a field, where not its docstring does.
            given: Whether the result holds only what was given, not the defaults.
        """
        explained = docstring_parser.parse(config.__doc__ or "").params
        texts = {doc.arg_name: doc.description or "" for doc in explained} | dict(texts)
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.name in without:
                continue
            required = field.default is field.default_factory is dataclasses.MISSING
            default: dict[str, Any] = {"required": True}
            if not required:
                factory = field.default_factory
                default = {"default": field.default if factory is dataclasses.MISSING else factory()}
            if hints[field.name] is bool:
                default |= {"action": yes_no()}
            else:
                metavar = metavars.get(field.name) or _metavar(hints[field.name])
                default |= {"type": hints[field.name], "metavar": metavar}
            text = texts[field.name].replace("None:", "default:")
            if given and not required:
                if default["default"] is not None:
                    text = f"{text} (default: {default['default']})"
                default["default"] = SUPPRESS
            name = names.get(field.name, field.name).replace("_", "-")
            self.add_argument(f"--{name}", dest=field.name, help=text, **default)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the complaint as one line that names the option and, for a misspelt one, the nearest."""
        raise UserError(self._explain(message)) from ex

    def _explain(self, message: str) -> str:
        """Put jsonargparse's words into the user's: options as they are typed, types in English."""
        if match := re.search(r"unrecognized arguments: (\S+)", message):
            word = match[1]
            if not word.startswith("-"):
                return f"unexpected argument {word!r}; see {self.prog} --help"
            options = [option for action in self._actions for option in action.option_strings]
            return f"unknown option {word}.{suggest(word, options) or f' See {self.prog} --help.'}"
        if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", match[2])
            return f"unknown command {match[1]!r}.{suggest(match[1], choices) or f' Choose from {match[2]}.'}"
        if match := re.search(r'expected "[\w.]*verb" to be one of {(.*?)}', message):
            return f"a command is missing; choose from {match[1].replace(',', ', ')}"
        if match := re.search(r"arguments are required: (.*)", message):
            keys = match[1].split(", ")
            missing = [self._as_typed(key) for key in keys]
            return f"missing {', '.join(missing)}; see {self._find(keys[0])[0].prog} --help"
        if match := re.search(r'key "([\w.-]+)".*(?:Got|Given) value: (.*)', message, re.DOTALL):
            wanted = describe_type(self._hint(match[1]))
            return f"{self._as_typed(match[1])} must be {wanted}, not {match[2].strip()!r}"
        return " ".join(message.split())

    def _find(self, key: str) -> "tuple[Parser, Action | None]":
        """Return the parser and the argument of a key; `train.lr` is `lr` of the verb `train`."""
        verb, _, rest = key.partition(".")
        if rest and verb in self._verbs:
            return self._verbs[verb]._find(rest)
        return self, next((action for action in self._actions if action.dest == key), None)

    def _as_typed(self, key: str) -> str:
        """Return the option, or the placeholder of a positional argument, that a key stands for."""
        _, action = self._find(key)
        if action is None:
            return key
        return action.option_strings[0] if action.option_strings else str(action.metavar)

    def _hint(self, key: str) -> Any:
        """Return the type of a key's value; of an argument that may be repeated, the type of one."""
        _, action = self._find(key)
        hint = getattr(action, "_typehint", None) or getattr(action, "type", None)
        return typing.get_args(hint)[0] if action is not None and action.nargs == ONE_OR_MORE else hint


class ConfigFile(ActionConfigFile):
    """Reads a YAML file of options; what is wrong with it is told with its name and the nearest keys."""

    def find(self, option: str | None, value: str) -> Path:
        """Return the file that the value of an option stands for."""
        return Path(value)

    def explain(self, key: str) -> str:
        """Return what there is to say of a key that is no option, as a sentence after a blank."""
        return ""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = self.find(option_string, values)
        known = [action.dest for action in parser._actions if action.dest not in ("help", self.dest)]
        content = read_yaml(path)
        for key in content:
            if key not in known:
                hint = self.explain(str(key)) or suggest(str(key), known) or f" Known are {', '.join(known)}."
                raise UserError(f"{path}: unknown key {key!r}.{hint}")
        try:
            super().__call__(parser, cfg, json.dumps(content, default=str), option_string)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def config_first(words: Sequence[str]) -> list[str]:
    """Move `--recipe NAME` and then `--config FILE` to the front of a verb's words: flags win over both.

    A run that `train` or `segment train` resumes brings its own file, before both.
    """
    verb = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    resume = "--resume" if verb[:1] == ["train"] or verb[:2] == ["segment", "train"] else None
    rest: list[str] = []
    own: list[str] = []
    first: dict[str, list[str]] = {"--recipe": [], "--config": []}
    remaining = iter(words[len(verb) :])
    for word in remaining:
        option, equals, value = word.partition("=")
        group = [word] if equals else [word, *itertools.islice(remaining, option in (*first, resume))]
        if option == resume and len(value or group[-1]) and (equals or len(group) == 2):
            own += ["--config", str(Path(value or group[-1]) / "config.yaml")]
        first.get(option, rest).extend(group)
    return [*verb, *own, *first["--recipe"], *first["--config"], *rest]


def _metavar(hint: Any) -> str:
    """Return what stands for a value of a type in the help."""
    hint = _without_none(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return {int: "N", float: "X", bool: "true|false", Path: "PATH", str: "NAME"}.get(hint, "YAML")


def _without_none(hint: Any) -> Any:
    """Return ``X`` for ``X | None``, and any other type as it is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kept = [part for part in typing.get_args(hint) if part is not type(None)]
        return kept[0] if len(kept) == 1 else hint
    return hint
