"""Conversations -> prompt text, by the templates of one model, contents told from template text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sandwich.errors import InvalidRequestError
from sandwich.text.chat_template import ChatTemplate
from sandwich.text.control_tokens import Marks, marks_for
from sandwich.text.messages import Chat, template_messages

_END: Final = "\uf8ff "  # put behind the message that is to be continued, and found again


class RenderedChat(NamedTuple):
    """What a template made. `marks`: around special tokens that came from messages, if any did."""

    text: str
    marks: Marks | None

    @property
    def plain_text(self) -> str:
        return self.text if self.marks is None else self.marks.take_off(self.text)


class ChatRenderer:
    """The chat templates of one model. Thread-safe."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        control_tokens: re.Pattern[str],
    ) -> None:
        """`sources`: Jinja by name; the usual template is "default".

        `special_tokens`: names that templates use, such as `bos_token`, and their text.
        `control_tokens`: finds what is marked where messages hold it.
        """
        self._sources = sources
        self._special_tokens = special_tokens
        self._control_tokens = control_tokens
        self._compiled: dict[str, ChatTemplate] = {}

    @property
    def has_template(self) -> bool:
        return "default" in self._sources

    def template(self, has_tools: bool = False) -> ChatTemplate:
        """The compiled template. Some models have one of their own for conversations with tools.

        Raises InvalidRequestError if the model has none.
        """
        name = "tool_use" if has_tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise InvalidRequestError(
                "this model has no chat template; use /v1/completions or `sandwich complete`, "
                "or give a template with --chat-template",
                param="messages",
            )
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self._sources[name], self._special_tokens)
        return self._compiled[name]

    def render(self, chat: Chat) -> RenderedChat:
        """The prompt. Raises InvalidRequestError if the template or a message cannot be used."""
        template = self.template(has_tools=bool(chat.tools))
        messages = template_messages(chat.messages, template.source)
        tools, variables = list(chat.tools or ()) or None, dict(chat.template_kwargs)
        marks = marks_for([messages, tools, variables], self._control_tokens, template.source)
        if marks is not None:
            messages = [{**marks.put(each), "role": each["role"]} for each in messages]
            tools, variables = marks.put(tools), marks.put(variables)
        if chat.continue_final_message:
            messages[-1]["content"] += _END
        text = template.render(
            messages,
            add_generation_prompt=chat.add_generation_prompt,
            tools=tools,
            variables=variables,
        )
        return RenderedChat(_cut(text) if chat.continue_final_message else text, marks)


def _cut(text: str) -> str:
    """The text up to the end of the message that is to be continued, which `_END` marks.

    Where the template has stripped the contents, the last space of `_END` is gone; then the
    message's own last spaces go too, as in transformers.
    """
    place = text.rfind(_END.strip())
    if place < 0:
        raise InvalidRequestError(
            "the model's chat template does not show the last message's text, which "
            "continue_final_message asks to continue",
            "continue_final_message",
        )
    is_stripped = not text.startswith(_END, place)
    return text[:place].rstrip() if is_stripped else text[:place]
