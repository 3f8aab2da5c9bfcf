"""Measures the link to a server with probes, while nothing else measures it."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from loadpart_common.errors import OffloadError
from loadpart_device.edges.direction import MEASURABLE_BYTES
from loadpart_device.edges.probe_budget import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_device.edges.connection import Connection
    from loadpart_device.edges.link_estimator import LinkEstimator
    from loadpart_device.edges.probe_budget import ProbeBudget

_CALL_SECONDS = 10.0
_RETRY_SECONDS = 0.25
_PERIOD_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0  # even the thinnest link is probed once a minute
_DOUBT_SECONDS = 2.0  # until a reading that deviates is repeated
_PROBE_BYTES = 2 * MEASURABLE_BYTES
_LARGEST_PROBE_BYTES = 1 << 20
_THIN_SECONDS_PER_BYTE = _PERIOD_SECONDS * SHARE / (2 * _PROBE_BYTES)
_CHECK_BYTES, _CHECK_SECONDS = 8 << 10, 0.02  # beyond what goes through at once: enough for a clock
_PROBE_SECONDS, _LEAST_PROBE_SECONDS = 0.025, 1e-4  # of a probe that is long enough for a clock, and of any
_SURE_SECONDS = 0.1
_QUIET_SECONDS = 0.02  # before a small request: without it, one finds warmer caches than an inference's ever does
_TIMES_A_DOWNLINK = 6  # after which the downlink is probed too: answers are small
_BUSY_SECONDS = 0.05
_ALERT_PERIOD_SECONDS, _ALERT_DOUBT_SECONDS, _ALERT_SECONDS = 1.0, 0.1, 15.0
"""After an answer that was late, the link is looked at once a second for a while: what came suddenly may go so."""

log = logging.getLogger(__name__)


class Prober:
    """A thread that probes the link of one server now and then, within the budget of the device."""

    def __init__(
        self, connection: Connection, link: LinkEstimator, budget: ProbeBudget, is_quiet: Callable[[], bool]
    ) -> None:
        """Makes a prober; `start` starts it.

        Args:
            connection: To the server.
            link: Takes in what is measured.
            budget: Bounds the time that probes take up.
            is_quiet: Whether the device is idle enough for its clock to time the link.
        """
        self._connection = connection
        self._link = link
        self._budget = budget
        self._is_quiet = is_quiet
        self._closing = threading.Event()
        self._connected = threading.Event()
        self._measured = threading.Event()
        self._now = threading.Event()
        self._measured_times = 0
        self._alert_until = float("-inf")
        self._thread = threading.Thread(target=self._probe, name="loadpart-probe", daemon=True)

    def start(self) -> None:
        """Starts the thread; it waits until the server is there."""
        self._thread.start()

    def connected(self) -> None:
        """Has the thread probe: the server is there."""
        self._connected.set()

    def disconnected(self) -> None:
        """Has the thread wait until the server is there again; what was known of the link is forgotten."""
        self._connected.clear()
        self._link.forget()
        self._measured.clear()

    def measure_anew(self, *, alert: bool = False) -> None:
        """Forgets the link, and measures it anew at once.

        Args:
            alert: Whether the link has changed suddenly, so that it is looked at more often for some time.
        """
        if alert:
            self._alert_until = time.monotonic() + _ALERT_SECONDS
        self._link.forget()
        self._measured.clear()
        self._now.set()

    def wait_measured(self, timeout_seconds: float) -> bool:
        """Waits until the link has been measured; gives whether it was in time."""
        return self._measured.wait(timeout_seconds)

    def close(self) -> None:
        """Ends the thread; the connection must be closed, or a probe may still take a while."""
        self._closing.set()
        self._now.set()
        self._connected.set()
        if self._thread.is_alive():
            self._thread.join()

    def _probe(self) -> None:
        while True:
            self._connected.wait()
            self._now.clear()
            if self._closing.is_set():
                return
            is_alert = time.monotonic() < self._alert_until
            pause = period = _ALERT_PERIOD_SECONDS if is_alert else _PERIOD_SECONDS
            if not self._is_quiet():
                pause = _BUSY_SECONDS
            elif self._link.age_seconds >= period or self._link.deviation:
                try:
                    with self._budget.turn():
                        taken = self._measure()
                    wait = self._budget.pay(taken)
                    pause = period if is_alert else min(max(pause, wait), _LONGEST_PAUSE_SECONDS)
                    if self._link.deviation and pause < _LONGEST_PAUSE_SECONDS:
                        pause = _ALERT_DOUBT_SECONDS if is_alert else _DOUBT_SECONDS
                    if self._link.reading is not None:  # it may have been forgotten meanwhile
                        self._measured.set()
                except (OffloadError, ValueError) as error:  # ValueError: the channel is closed
                    log.debug("a probe failed: %s", error)
                    pause = _RETRY_SECONDS
            self._now.wait(pause)

    def _measure(self) -> float:
        """Times small requests, and two or three large ones in a row, as large as the link is quick.

        On a thin link large probes would have to be rare. There the first one is hardly larger than the burst, and the
        others follow only if its time shows that the link has changed.

        Returns:
            Seconds that the link, or the busier direction of it, was taken up.
        """
        started = time.monotonic()
        before = self._link.reading
        for _ in range(3 if before is None else 1):
            self._closing.wait(_QUIET_SECONDS)
            self._link.record(0, 0, self._connection.probe(b"", _CALL_SECONDS))
        sent = _PROBE_BYTES
        if is_thin := before is not None and before.seconds_per_byte > _THIN_SECONDS_PER_BYTE:
            sent = int(before.free_bytes + max(_CHECK_BYTES, _CHECK_SECONDS / before.seconds_per_byte))
        largest = _PROBE_BYTES if is_thin else _LARGEST_PROBE_BYTES
        first = (sent, self._probe_up(sent))
        if not is_thin or self._link.deviation or not self._link.check(*first):
            sent += self._follow_up(first, self._probe_up, largest, down=False)
            # A link never looks faster than it is; one that looks slower may only be in use.
            if self._link.deviation < 0:
                sent += self._follow_up(first, self._probe_up, largest, down=False)
        reading = self._link.reading
        taken = sent * reading.seconds_per_byte if reading else time.monotonic() - started
        if self._measured_times % _TIMES_A_DOWNLINK == 0:
            self._follow_up((_PROBE_BYTES, self._probe_down(_PROBE_BYTES)), self._probe_down, largest, down=True)
        self._measured_times += 1
        return taken

    def _follow_up(self, first: tuple[int, float], probe: Callable[[int], float], largest: int, *, down: bool) -> int:
        """Probes right after another probe, a second time where the link is quick; gives the bytes that it took.

        Args:
            first: That probe, bytes and seconds: it has emptied the bucket.
            probe: Carries so many bytes; gives the seconds.
            largest: Bytes that a probe may carry: the first one may have gone through at once on a link that is thin.
            down: Whether the downlink is probed.
        """
        scale = max(_PROBE_SECONDS / max(first[1], _LEAST_PROBE_SECONDS), 1.0)
        size = sent = int(min(first[0] * scale, largest))
        seconds = probe(size)
        # In a short time a delay of some milliseconds would matter. Delays only ever add: the shorter time is right.
        if seconds < _SURE_SECONDS:
            seconds, sent = min(seconds, probe(size)), 2 * size
        self._link.record_pair(first, (size, seconds), down=down)
        return sent

    def _probe_up(self, nbytes: int) -> float:
        return self._connection.probe(os.urandom(nbytes), _CALL_SECONDS)

    def _probe_down(self, nbytes: int) -> float:
        return self._connection.probe(b"", _CALL_SECONDS, response_bytes=nbytes)
