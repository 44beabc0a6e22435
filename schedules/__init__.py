"""Decisions: execution plans, and how they are chosen."""
