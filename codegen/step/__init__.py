"""A phase program and its operators."""
