"""Weighs what is known: the one place where a link and a load become the weights of a decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.planning.plans import Weights

if TYPE_CHECKING:
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad

MANY_DEVICES = 16
"""Devices on one server from which on each counts what its requests cost the others, and changes plans by chance."""


def weigh(link: LinkReading, load: ServerLoad, device_slow_down: float, reply_bytes: int, batch: int = 1) -> Weights:
    """The weights for a link and a load.

    Args:
        link: State of the link.
        load: State of the server.
        device_slow_down: Measured over predicted seconds of heads.
        reply_bytes: Bytes of an answer, one item.
        batch: Items of the batch.
    """
    # For every server before every inference. To unpack is quicker than to ask for one attribute after the other.
    round_trip, seconds_per_byte, free_bytes, down_seconds_per_byte, down_free_bytes, _ = link
    slow_down, backlog, _, devices, _, dispatch = load
    fixed = round_trip + backlog + dispatch
    replied = reply_bytes * batch - down_free_bytes
    if replied > 0:
        fixed += replied * down_seconds_per_byte
    counted = counted_externality_seconds(load) if devices > MANY_DEVICES else 0.0
    return Weights(device_slow_down, seconds_per_byte, slow_down, fixed, free_bytes, counted)


def counted_externality_seconds(load: ServerLoad) -> float:
    """As much of the waiting that a job would cause to others as this device counts: all of it among many devices.

    If each of many devices counted its own waiting only, they would fill the server until it is no better than none
    (Naor 1969). With few devices the term is 0: capacity that one leaves free would go unused.
    """
    if load.devices <= MANY_DEVICES:
        return 0.0
    return load.externality_seconds * (1 - MANY_DEVICES / load.devices)
