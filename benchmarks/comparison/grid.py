"""The conditions: network, bandwidth, load of the server and slow-down of the device. They were fixed in advance."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

NETWORKS = ("alexnet", "squeezenet", "resnet18", "resnet50", "xception", "vgg16")
TRAINED = "efficientnet-lite0"
"""Has trained weights; it is measured where what a codec does to the answers matters."""

MEGABITS = (1, 2, 4, 8, 16, 32, 64)
LEVELS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0, 2.0)
SLOW_DOWNS = (4, 8)
SOURCES = ("clients", "outside")
VARIED = 0.5
"""Level from which on a condition counts as loaded."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load of the server.

    Attributes:
        source: `clients`: other devices that send it images; `outside`: a process on its core that is not the daemon.
        level: Share of the server's time that the load asks for; above 1 it asks for more than there is, 0 is idle.
    """

    source: str
    level: float

    def __str__(self) -> str:
        return f"{self.source} {self.level:.0%}" if self.level else "idle"


IDLE = Load("clients", 0.0)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition, which stays the same while the policies are compared.

    Attributes:
        network: The network that the device runs.
        megabits: Rate of the link, both ways, in Mbit/s.
        slow_down: About how many times slower than the server the device is.
        load: Load of the server.
    """

    network: str
    megabits: int
    slow_down: int
    load: Load

    def __str__(self) -> str:
        return f"{self.network}, {self.megabits} Mbit/s, device {self.slow_down}x slower, {self.load}"


def full() -> list[Condition]:
    """Every combination."""
    loads = [IDLE, *(Load(source, level) for source in SOURCES for level in LEVELS if level)]
    return [
        Condition(network, megabits, slow_down, load)
        for network, slow_down, megabits, load in itertools.product(NETWORKS, SLOW_DOWNS, MEGABITS, loads)
    ]


def balanced() -> list[Condition]:
    """A subset of the conditions in which every network, bandwidth, level, slow-down and source is equally frequent.

    It is a Latin rectangle: each network occurs once with each bandwidth and once with each level, and each bandwidth
    occurs with six of the seven levels.
    """
    conditions = []
    for row, network in enumerate(NETWORKS):
        for column, megabits in enumerate(MEGABITS):
            index = (column + 2 * row) % len(LEVELS)
            load = Load(SOURCES[(row + index) % 2], LEVELS[index])
            conditions.append(
                Condition(network, megabits, SLOW_DOWNS[(row + column) % 2], load if load.level else IDLE)
            )
    return by_device(conditions)


def quick() -> list[Condition]:
    """A few conditions, to see that everything works."""
    loads = (IDLE, Load("clients", 0.9), Load("outside", 0.9))
    return [
        Condition(network, megabits, SLOW_DOWNS[0], load)
        for (network, megabits), load in itertools.product((("squeezenet", 32), ("resnet18", 16)), loads)
    ]


def thin() -> list[Condition]:
    """Thin links, where bytes are most of the latency; every other network runs on the slower kind of device."""
    return [
        Condition(network, megabits, SLOW_DOWNS[row % 2], load)
        for row, network in enumerate((*NETWORKS, TRAINED))
        for megabits in MEGABITS[:5]
        for load in (IDLE, Load("clients", 0.5))
    ]


def thin_quick() -> list[Condition]:
    """A few of them."""
    return [each for each in thin() if each.network in {"squeezenet", TRAINED} and each.megabits in {2, 8}]


def by_device(conditions: list[Condition]) -> list[Condition]:
    """Sorts conditions so that each device is set up only once."""
    return sorted(conditions, key=lambda each: ((*NETWORKS, TRAINED).index(each.network), each.slow_down))
