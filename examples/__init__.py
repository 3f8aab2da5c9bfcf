"""Examples: runnable programs that show how LoADPart is used."""
