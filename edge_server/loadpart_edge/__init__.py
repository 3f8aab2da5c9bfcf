"""The edge server: a daemon that runs tails of networks for many devices.

Data's way through: `service` turns a request into arrays; `models` checks it; `scheduler` queues it for a `worker`
process, which owns MindSpore; `load` learns from its time; `service` turns the outputs into a reply.
"""
