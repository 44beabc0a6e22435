"""A request: what is asked, how far it is, and the blocks of the KV cache it holds."""
