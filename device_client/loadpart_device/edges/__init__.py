"""Edge servers as the device knows them: connection, link, load, and the tails that they offer."""
