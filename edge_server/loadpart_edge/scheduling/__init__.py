"""Queues jobs, gives them to workers, keeps the workers alive, and knows how loaded the server is."""
