"""Judgement: measures the engine beside the limits of the machine it runs on.

It may import everything below it; nobody imports it but the command line.
"""
