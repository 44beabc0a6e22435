"""Facts about a machine: what it is, what it can run, and what this process may use of it.

Depends on the standard library, NumPy and py-libnuma.
"""
