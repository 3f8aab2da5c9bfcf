"""Whether strangers get in, and what those can do who are in: attacks, credentials, and what the door costs."""
