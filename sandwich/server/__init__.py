"""The HTTP server: the OpenAI wire format on one side, the bridge to the engine on the other."""
