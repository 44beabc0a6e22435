"""`python -m sandwich` is the command `sandwich`."""

from sandwich.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
