"""The latency model: idle seconds of any segment of any network on one machine, with one engine."""
