"""Workers: what runs tails for the scheduler."""
