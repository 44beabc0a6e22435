"""Small programs that measure the limits of a machine."""
