"""The MindSpore engine, and everything that only MindSpore needs."""
