"""Matrix products beside other libraries and the machine's limits."""
