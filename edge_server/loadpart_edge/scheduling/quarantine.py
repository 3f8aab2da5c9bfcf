"""Requests that ended or hung workers: the same bytes are not given to another one."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from loadpart_common.errors import InternalError

if TYPE_CHECKING:
    from loadpart_edge.scheduling.job import Tail
    from loadpart_edge.workers.base import Job

_MOST = 256


class Quarantine:
    """Remembers requests by their content. A hash is only computed for a tail that is among them."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Tail, bytes], None] = OrderedDict()
        self._tails: set[Tail] = set()

    def add(self, tail: Tail, job: Job) -> None:
        """Notes a request that workers did not survive."""
        self._known[tail, _fingerprint(job)] = None
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        self._tails = {tail for tail, _ in self._known}

    def check(self, tail: Tail, job: Job) -> None:
        """Refuses a request that workers did not survive before.

        Raises:
            InternalError: It is one.
        """
        if tail in self._tails and (tail, _fingerprint(job)) in self._known:
            raise InternalError("workers died over this very request; it is not run again")


def _fingerprint(job: Job) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in job.tensors:
        digest.update(repr((tensor.dtype.str, tensor.shape)).encode())
        digest.update(tensor.data)
    return digest.digest()
