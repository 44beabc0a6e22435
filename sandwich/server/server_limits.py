"""What a client may ask of the server at most, and how long the server waits for a client.

Plain numbers, frozen; what a user may set stands in `sandwich.config.ServerConfig` instead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    max_choices: int = 128  # `n`
    max_prompts: int = 256  # of one request
    max_stop_strings: int = 16
    max_stop_chars: int = 512  # of one stop string
    max_logit_biases: int = 1024
    max_inline_chars: int = 2048  # longer texts are tokenised off the event loop
    keep_alive_s: float = 5.0  # silence after which a stream sends a comment
    progress_s: float = 0.5  # between two words of how far a prompt is, where they are asked for
    body_timeout_s: float = 60.0  # for a client to send its body
    write_timeout_s: float = 60.0  # for a client to take what it is sent
