"""Other engines: had, given the same model, started at their best and measured at the same work."""
