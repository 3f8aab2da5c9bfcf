"""The gRPC service: it converts a request, calls, and converts the result back."""
