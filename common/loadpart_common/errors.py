"""Errors, the codes that carry them over the wire, and the gRPC statuses that go with the codes.

OffloadError
├── RequestError            what was asked for cannot be done; asking again gives the same answer
│   ├── InputError          an array, image or request is not what the model takes
│   ├── CutError            the network cannot be cut there
│   ├── ModelMismatchError  the two sides hold different files under one name
│   ├── MessageTooLargeError
│   └── ModelNotFoundError
├── ModelError              a model file or the store is broken or holds what cannot be served
├── ServerError             the server failed; asking again may help
│   ├── OverloadedError     its queue is full
│   ├── UnavailableError    it cannot be reached, or it drains
│   ├── DeadlineError       the answer would come, or came, too late
│   └── InternalError       something broke inside it
└── SettingsError           a flag, variable or file has a wrong value
"""

from __future__ import annotations

from typing import ClassVar

import grpc

ERROR_METADATA_KEY = "loadpart-error"
"""Trailing metadata that carries `OffloadError.code`."""


class OffloadError(Exception):
    """Base of all errors that LoADPart raises on purpose; the message says what was expected and what came."""

    code: ClassVar[str] = "OFFLOAD_ERROR"
    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class RequestError(OffloadError):
    """What was asked for cannot be done; asking again gives the same answer."""

    code = "BAD_REQUEST"
    status = grpc.StatusCode.INVALID_ARGUMENT


class InputError(RequestError):
    """An array, an image or a request does not fit the model."""

    code = "BAD_INPUT"


class CutError(RequestError):
    """The network cannot be cut at that place."""

    code = "BAD_CUT"
    status = grpc.StatusCode.OUT_OF_RANGE


class ModelMismatchError(RequestError):
    """The device and the server hold different files under one model name."""

    code = "MODEL_MISMATCH"
    status = grpc.StatusCode.FAILED_PRECONDITION


class MessageTooLargeError(RequestError):
    """A message exceeds what the receiver accepts."""

    code = "MESSAGE_TOO_LARGE"
    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class ModelNotFoundError(RequestError):
    """The model store holds no model of that name, or the server does not serve it."""

    code = "MODEL_NOT_FOUND"
    status = grpc.StatusCode.NOT_FOUND


class ModelError(OffloadError):
    """A model file is corrupt, foreign, or holds what cannot be cut or served."""

    code = "MODEL_ERROR"
    status = grpc.StatusCode.FAILED_PRECONDITION


class ServerError(OffloadError):
    """The server failed; the same request may succeed later or elsewhere."""

    code = "SERVER_ERROR"
    status = grpc.StatusCode.INTERNAL


class OverloadedError(ServerError):
    """The server's queue is full."""

    code = "OVERLOADED"
    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(ServerError):
    """The server cannot be reached, or it is shutting down."""

    code = "UNAVAILABLE"
    status = grpc.StatusCode.UNAVAILABLE


class DeadlineError(ServerError):
    """The answer did not come in time."""

    code = "DEADLINE"
    status = grpc.StatusCode.DEADLINE_EXCEEDED


class InternalError(ServerError):
    """Something broke inside the server; its log has the details."""

    code = "INTERNAL"


class SettingsError(OffloadError):
    """A flag, an environment variable or a settings file has a wrong value."""

    code = "SETTINGS"
    status = grpc.StatusCode.INVALID_ARGUMENT


_ON_THE_WIRE: tuple[type[OffloadError], ...] = (
    RequestError,
    InputError,
    CutError,
    ModelMismatchError,
    MessageTooLargeError,
    ModelNotFoundError,
    ModelError,
    OverloadedError,
    UnavailableError,
    DeadlineError,
    InternalError,
)
_BY_CODE = {error.code: error for error in _ON_THE_WIRE}
_BY_STATUS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: MessageTooLargeError,  # the only one that gRPC itself sends
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.INVALID_ARGUMENT: RequestError,
    grpc.StatusCode.UNIMPLEMENTED: RequestError,
}


def from_rpc_error(error: grpc.RpcError) -> OffloadError:
    """Turns what gRPC raised into the error that the server meant, by its code, or else by the gRPC status."""
    if not isinstance(error, grpc.Call):
        return InternalError(str(error))
    metadata = dict(error.trailing_metadata() or ())
    kind = _BY_CODE.get(str(metadata.get(ERROR_METADATA_KEY))) or _BY_STATUS.get(error.code(), InternalError)
    return kind(error.details() or error.code().name)
