"""A job on its way to a node, as one piece of bytes: Ray carries those quicker than objects, and copies them once."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadpart_edge.workers.base import Job

_LENGTH_BYTES = 4


def pack(job: Job) -> bytes:
    """A job as bytes, its tensors' last."""
    rest = job._replace(tensors=tuple(tensor._replace(data=b"") for tensor in job.tensors))  # type: ignore[arg-type]
    head = pickle.dumps((rest, [len(tensor.data) for tensor in job.tensors]), pickle.HIGHEST_PROTOCOL)
    return b"".join((len(head).to_bytes(_LENGTH_BYTES, "little"), head, *(tensor.data for tensor in job.tensors)))


def unpack(data: bytes) -> Job:
    """A job from bytes of the daemon's; its tensors are views into them."""
    view = memoryview(data)
    at = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    job: Job
    job, sizes = pickle.loads(view[_LENGTH_BYTES:at])
    tensors = []
    for tensor, size in zip(job.tensors, sizes, strict=True):
        tensors.append(tensor._replace(data=view[at : at + size]))
        at += size
    return job._replace(tensors=tuple(tensors))
