"""Which plan to run, and why."""
