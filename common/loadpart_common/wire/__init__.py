"""The offload protocol: endpoints, methods, tensors in messages, errors in statuses."""
