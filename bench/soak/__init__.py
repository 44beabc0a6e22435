"""A long rain of random requests on a server, to see what breaks."""
