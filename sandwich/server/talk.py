"""A conversation that asks for a reply: what all endpoints of chats have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sandwich.requests.sampling_params import SamplingParams
from sandwich.server.call import EncodedPrompt
from sandwich.server.protocol import ChatBody
from sandwich.server.service import Service
from sandwich.server.tools import ToolUse, tool_use
from sandwich.server.validation import chat_params, conversation
from sandwich.text.messages import Chat
from sandwich.text.reasoning import ReasoningParser, opens_reasoning, writes_reasoning
from sandwich.text.reply import Reply


@dataclass(frozen=True)
class Talk:
    """How the prompt of a conversation is made, and its replies are chosen and read."""

    service: Service
    chat: Chat
    params: SamplingParams
    tools: ToolUse | None
    has_reasoning: bool

    @staticmethod
    def of(service: Service, body: ChatBody) -> Talk:
        """Raises InvalidRequestError for what the model or the server cannot do."""
        params = chat_params(body, service.backend.generation_defaults, service.limits)
        tools = tool_use(body, service.tokenizer)
        if tools is not None and tools.grammar is not None:
            params = replace(params, grammar=tools.grammar)
        chat = conversation(body, None if tools is None else tools.tools)
        template = service.tokenizer.chat_template(has_tools=bool(chat.tools))
        return Talk(service, chat, params, tools, writes_reasoning(template.source))

    async def encode(self) -> list[EncodedPrompt]:
        prompt = await self.service.encode_chat(self.chat)
        # A reply that follows a grammar has no room for reasoning.
        opens = self.has_reasoning and self.params.grammar is None and opens_reasoning(prompt.text)
        return [EncodedPrompt(prompt.token_ids, opens_reasoning=opens)]

    def reply(self, prompt: EncodedPrompt) -> Reply:
        """For one more choice."""
        reasoning = ReasoningParser(prompt.opens_reasoning) if self.has_reasoning else None
        return Reply(reasoning, None if self.tools is None else self.tools.parser())
