"""Errors as gRPC statuses, and back.

A status carries the error's message and, in trailing metadata, the error's code, from which the receiver raises the
same error again. Statuses without a code come from gRPC itself or from a proxy.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import grpc

from loadpart_common.errors import (
    AccessError,
    AuthenticationError,
    CutError,
    DeadlineError,
    InputError,
    InternalError,
    MessageTooLargeError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    OffloadError,
    OverloadedError,
    PermissionDeniedError,
    RequestError,
    ServerError,
    UnavailableError,
)
from loadpart_common.text import printable

Metadata: TypeAlias = tuple[tuple[str, str], ...]

ERROR_KEY = "loadpart-error"
"""Trailing metadata with the error's code."""

RETRY_AFTER_KEY = "loadpart-retry-after-seconds"
"""Trailing metadata with `ServerError.retry_after_seconds`."""

_LONGEST_RETRY_SECONDS = 60.0

_TOO_LARGE = "message larger than max"
"""In the text with which gRPC itself refuses a message, under the same status as a lack of room."""

_STATUSES: dict[type[OffloadError], grpc.StatusCode] = {
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    CutError: grpc.StatusCode.OUT_OF_RANGE,
    ModelMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    MessageTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    AccessError: grpc.StatusCode.PERMISSION_DENIED,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    InternalError: grpc.StatusCode.INTERNAL,
}

_BY_CODE = {error.code: error for error in _STATUSES}

_BY_STATUS: dict[grpc.StatusCode, type[OffloadError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,  # as proxies and gRPC itself send it
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.INVALID_ARGUMENT: RequestError,
    grpc.StatusCode.UNIMPLEMENTED: RequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}


def status_of(error: OffloadError) -> grpc.StatusCode:
    """The status that an error is sent with: that of its class, or of the nearest one above it."""
    return next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), grpc.StatusCode.UNKNOWN)


def metadata_of(error: OffloadError) -> Metadata:
    """The trailing metadata that an error is sent with."""
    metadata: Metadata = ((ERROR_KEY, error.code),)
    if isinstance(error, ServerError) and error.retry_after_seconds is not None:
        metadata += ((RETRY_AFTER_KEY, f"{error.retry_after_seconds:.3f}"),)
    return metadata


def error_of(error: grpc.RpcError) -> OffloadError:
    """Converts an error of gRPC into the one that the server raised, by its code, or else by the status."""
    if not isinstance(error, grpc.Call):
        return InternalError(str(error))
    metadata = {key: str(value) for key, value in error.trailing_metadata() or ()}
    kind = _BY_CODE.get(metadata.get(ERROR_KEY, "")) or _BY_STATUS.get(error.code(), InternalError)
    message = printable(error.details() or error.code().name)
    if kind is OverloadedError and _TOO_LARGE in message:
        return MessageTooLargeError(message)
    if issubclass(kind, ServerError):
        return kind(message, _seconds(metadata.get(RETRY_AFTER_KEY)))
    return kind(message)


def _seconds(text: str | None) -> float | None:
    """The waiting time that a server sent; None when there is none, or when it is invalid or too long."""
    try:
        seconds = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _LONGEST_RETRY_SECONDS else None
