"""Faults in the middle of inferences: daemons killed and stopped, workers killed and hung, links cut and thinned."""
