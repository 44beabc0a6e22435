"""The command `sandwich`: one file for each verb, loaded when the verb is used.

Nothing heavy is imported here, so that `sandwich --help` answers at once.
"""

from sandwich.cli.main import main

__all__ = ["main"]
