"""What an option is: one dataclass field with its default, its help, its unit and its check.

The command line, the YAML file of `--config` and the Python API are all made from such fields, with
the same names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

from sandwich.errors import ConfigError

_SIZE_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{letter}i": 1 << (10 * power) for power, letter in enumerate("kmgt", start=1)
}


# ---- text -> value -------------------------------------------------------------------------


def parse_nbytes(text: str | int) -> int:
    """Bytes from "512MiB", "8G", "1.5GiB" or a plain number; `i` means powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", str(text).strip().lower())
    if match is None:
        raise ConfigError(
            f"{text!r} is not a size; write a number with a unit, such as 512MiB or 8GiB"
        )
    return int(float(match[1]) * _SIZE_UNITS[match[2] or ""])


def format_nbytes(nbytes: int) -> str:
    """Bytes for people: "512.0 MiB", "8.00 GiB"."""
    return f"{nbytes / 2**20:.1f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.2f} GiB"


def parse_bool(text: str | bool) -> bool:
    """True for 1, true, yes, on; False for 0, false, no, off and nothing."""
    value = str(text).strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off", ""):
        return False
    raise ConfigError(f"{text!r} is not a yes or no; write 1 or 0")


def one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ConfigError(f"{text!r} is not one of {', '.join(choices)}")
    return text


def integer_between(low: int, high: int | None = None) -> Callable[[str | int], int]:
    def integer(text: str | int) -> int:
        try:
            value = int(str(text))
        except ValueError:
            raise ConfigError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{value} is out of range; it must be {bounds}")
        return value

    return integer


def parse_milliseconds(text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of milliseconds") from None
    if not 0 < value < float("inf"):
        raise ConfigError(f"{value} is not a number of milliseconds above 0")
    return value


def parse_seconds(text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of seconds") from None
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{value} is not a number of seconds from 0 up")
    return value


# ---- environment ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """A variable that sets the default of the option `flag`; the flag wins over it."""

    name: str
    flag: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    is_secret: bool = False

    def read(self, environ: Mapping[str, str] = os.environ) -> Any:
        """The value, or the default if the variable is unset or empty. ConfigError if unusable."""
        text = environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ConfigError as error:
            raise ConfigError(f"environment variable {self.name}: {error}") from None


# ---- options -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """How one field is spelled, explained and checked wherever a user can set it."""

    group: str
    help: str
    parse: Callable[[Any], Any]
    metavar: str | None = None
    choices: tuple[str, ...] | None = None


def option(
    group: str,
    help: str,  # noqa: A002
    parse: Callable[[Any], Any],
    default: Any = None,
    *,
    env: EnvironmentVariable | None = None,
    **spelling: Any,
) -> Any:
    """A field of a configuration; `env` sets its default."""
    if env is not None:
        made = Option(group, f"{help} [env: {env.name}]", parse, **spelling)
        return field(default_factory=env.read, repr=not env.is_secret, metadata={"option": made})
    made = Option(group, help, parse, **spelling)
    return field(default=default, metadata={"option": made})


def options(config: type) -> dict[str, tuple[Field[Any], Option]]:
    """Flag name (the field's, with dashes) -> field and option, in the order of the fields."""
    found = [(f, f.metadata["option"]) for f in fields(config) if "option" in f.metadata]
    return {f.name.replace("_", "-"): (f, option) for f, option in found}


def check_options(config: Any) -> None:
    """Run every set field through its option's check, so that all ways of setting it are equal."""
    for name, (f, option) in options(type(config)).items():
        value = getattr(config, f.name)
        if value is None:
            continue
        try:
            object.__setattr__(config, f.name, option.parse(value))
        except ConfigError as error:
            raise ConfigError(f"--{name}: {error}") from None
