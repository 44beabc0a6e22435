"""Chat messages -> prompt text, by the Jinja template that comes with a model.

Renders as transformers does: the same environment, filters, globals and names. Templates are
programs by strangers, so they run in Jinja's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sandwich.errors import InvalidRequestError, ModelError

# What a template is always given, which no variable of a request may replace.
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks replies for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PublicNamespace(Namespace):
    """Jinja's `namespace(...)`, without underscored attributes, which reach into Python itself."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *rest = args
        names = dict(*rest, **attributes)
        for name in names:
            _check_public(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} is not allowed")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _PublicNamespace
    return environment


class ChatTemplate:
    """A compiled chat template. Rendering is thread-safe.

    Raises ModelError if `source` is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: names that templates use, such as `bos_token`, and their text."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.exceptions.TemplateError as error:
            raise ModelError(
                f"the chat template is not valid Jinja: {error}; give another with --chat-template"
            ) from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `add_generation_prompt`: end it where the assistant's reply begins.

        `variables`: what else the template may ask for. Raises InvalidRequestError if one of them
        takes a name that is not free, or the template refuses the messages or fails on them.
        """
        given = dict(variables or {})
        if taken := _OWN_VARIABLES & given.keys():
            raise InvalidRequestError(
                f"chat_template_kwargs has {min(taken)!r}, which is a field of the request itself",
                param="chat_template_kwargs",
            )
        try:
            return self._template.render(
                messages=list(messages),
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(self._special_tokens | given),
            )
        except Exception as error:  # a template is a program: what it raises is up to its author
            raise InvalidRequestError(
                f"the model's chat template does not accept these messages: {error}",
                param="messages",
            ) from error
