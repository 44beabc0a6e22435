"""How the cores of a plan share work and meet."""
