"""The step loop: schedule, execute, sample, commit."""
