"""Options of sandwich/config.py -> flags, and flags or a YAML file -> configuration objects."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sandwich.config import DEFAULT_MODEL, ENVIRONMENT, EngineConfig
from sandwich.errors import ConfigError
from sandwich.foreign_options import FOREIGN_OPTIONS, without_foreign_options
from sandwich.options import Option, options, parse_nbytes

_MODEL = "model"
_FOREIGN = "foreign_"  # in front of a foreign flag's name, in a namespace
_Config = TypeVar("_Config")


class _Group(Protocol):
    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action: ...


def add_model_argument(
    parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL, more: str = ""
) -> None:
    """MODEL. default: what its absence means; more: what else it may be, with a comma behind."""
    parser.add_argument(
        _MODEL,
        nargs="?",
        metavar="MODEL",
        help="a GGUF file, a folder in the Hugging Face layout, a hub id (ORGANISATION/NAME), "
        f"{more}or {DEFAULT_MODEL!r}, a small model in a Python package (default: {default})",
    )


def add_options(
    parser: argparse.ArgumentParser, *configs: type, without_groups: Collection[str] = ()
) -> None:
    """A flag for every option, in the groups that the options name, except for some groups."""
    groups: dict[str, _Group] = {}
    for config in configs:
        for name, (field, option) in options(config).items():
            if option.group in without_groups:
                continue
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            _add_flag(groups[option.group], name, field, option)
    _add_foreign_flags(parser)


def _add_foreign_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of other engines, which help does not list; `build_config` answers them."""
    taken = {text for action in parser._actions for text in action.option_strings}
    for name in FOREIGN_OPTIONS:
        if f"--{name}" not in taken:
            parser.add_argument(
                f"--{name}",
                dest=_FOREIGN + name,
                nargs="?",
                const="true",
                default=None,
                help=argparse.SUPPRESS,
            )


def add_config_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="read options from this file; its keys are the flags without the dashes, "
        "and `model`; flags on the command line win",
    )


def _add_flag(group: _Group, name: str, field: Field[Any], option: Option) -> None:
    text = option.help.replace("%", "%%")
    if "(default:" not in text:
        default = _default_text(name, field, option)
        text += f" (default: {default})" if default else ""
    common = {"dest": _dest(name), "default": None, "help": text}
    if field.type == "bool":
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **common)
        return
    metavar = "{" + ",".join(option.choices) + "}" if option.choices else option.metavar
    group.add_argument(f"--{name}", metavar=metavar or "N", **common)


def _default_text(name: str, field: Field[Any], option: Option) -> str:
    """The default as a user would type it; that of an environment variable when it is not set."""
    default: Any = field.default
    if default is MISSING:
        default = next(v.default for v in ENVIRONMENT if v.flag == name)
    if default is None:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if option.parse is parse_nbytes:
        return f"{default >> 20}MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _dest(name: str) -> str:
    """Attribute of the namespace; the prefix keeps options apart from a verb's own flags."""
    return "option_" + name.replace("-", "_")


def read_config_file(path: str, *configs: type) -> dict[str, Any]:
    """Flag name -> value, as the YAML file at `path` has them.

    Raises ConfigError for a file that cannot be read or a key that is no flag.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: must hold lines like `port: 8000`")
    known = {_MODEL}.union(*(options(config) for config in configs))
    try:
        own = without_foreign_options(content, known, spelling=repr)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    for key, value in own.items():
        if isinstance(value, dict | list):
            raise ConfigError(
                f"--config {path}: {key} must be one value, not a {type(value).__name__}"
            )
    return own


def build_config(
    config: type[_Config], args: argparse.Namespace, file_values: Mapping[str, Any] | None = None
) -> _Config:
    """The configuration from flags, then the file, then the environment, then the defaults.

    Raises ConfigError for a value that is out of range.
    """
    values: dict[str, Any] = {}
    for name, (field, _) in options(config).items():
        given = getattr(args, _dest(name), None)
        value = given if given is not None else (file_values or {}).get(name)
        if value is not None:
            values[field.name] = value
    if issubclass(config, EngineConfig):
        foreign = {
            name.removeprefix(_FOREIGN): value
            for name, value in vars(args).items()
            if name.startswith(_FOREIGN) and value is not None
        }
        without_foreign_options(foreign, (), spelling=lambda name: f"--{name}")
        model = getattr(args, _MODEL, None) or (file_values or {}).get(_MODEL)
        values |= {_MODEL: str(model)} if model else {}
    return config(**values)
