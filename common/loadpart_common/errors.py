"""Errors. Each has a code, which carries it over the wire (see `wire.error_codes`) and names it in metrics.

OffloadError
├── RequestError            what was asked for cannot be done; asking again gives the same answer
│   ├── InputError          an array, image or request is not what the model takes
│   ├── CutError            the network cannot be cut there
│   ├── ModelMismatchError  the two sides hold different files under one name
│   ├── MessageTooLargeError
│   └── ModelNotFoundError
├── AccessError             the server lets this device not do that; another credential is needed
│   ├── AuthenticationError   the credential is missing, wrong or expired
│   └── PermissionDeniedError it is known, and has no right to do this
├── ModelError              a model file or the store is broken or holds what cannot be served
├── ServerError             the server failed; asking again may help
│   ├── OverloadedError     it has no room or no time for it; says when to ask again
│   ├── UnavailableError    it cannot be reached, or it drains
│   ├── DeadlineError       the answer would come, or came, too late
│   └── InternalError       something broke inside it
├── ClientClosedError       the client was closed before this call
└── SettingsError           a flag, variable or file has a wrong value
"""

from __future__ import annotations

from typing import ClassVar


class OffloadError(Exception):
    """Base of all errors that LoADPart raises on purpose; the message says what was expected and what came."""

    code: ClassVar[str] = "OFFLOAD_ERROR"


class RequestError(OffloadError):
    """What was asked for cannot be done; asking again gives the same answer."""

    code = "BAD_REQUEST"


class InputError(RequestError):
    """An array, an image or a request does not fit the model."""

    code = "BAD_INPUT"


class CutError(RequestError):
    """The network cannot be cut at that place."""

    code = "BAD_CUT"


class ModelMismatchError(RequestError):
    """The device and the server hold different files under one model name."""

    code = "MODEL_MISMATCH"


class MessageTooLargeError(RequestError):
    """A message exceeds what the receiver accepts."""

    code = "MESSAGE_TOO_LARGE"


class ModelNotFoundError(RequestError):
    """The model store holds no model of that name, or the server does not serve it."""

    code = "MODEL_NOT_FOUND"


class AccessError(OffloadError):
    """The server does not let this device do what it asked for; asking again with the same credential is useless."""

    code = "ACCESS"


class AuthenticationError(AccessError):
    """The device's credential is missing, wrong or expired."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(AccessError):
    """The device's credential is valid, and does not allow what was asked for."""

    code = "PERMISSION_DENIED"


class ModelError(OffloadError):
    """A model file is corrupt, foreign, or holds what cannot be cut or served."""

    code = "MODEL_ERROR"


class ServerError(OffloadError):
    """The server failed; the same request may succeed later or elsewhere.

    Attributes:
        retry_after_seconds: When to ask again, as the server expects; None when it did not say.
    """

    code = "SERVER_ERROR"

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class OverloadedError(ServerError):
    """The server has no room for the request, or no time to finish it by its deadline."""

    code = "OVERLOADED"


class UnavailableError(ServerError):
    """The server cannot be reached, or it is shutting down."""

    code = "UNAVAILABLE"


class DeadlineError(ServerError):
    """The answer did not come in time."""

    code = "DEADLINE"


class InternalError(ServerError):
    """Something broke inside the server; its log has the details."""

    code = "INTERNAL"


class ClientClosedError(OffloadError):
    """The client was closed before this call."""

    code = "CLIENT_CLOSED"


class SettingsError(OffloadError):
    """A flag, an environment variable or a settings file has a wrong value."""

    code = "SETTINGS"


def error_named(code: str) -> type[OffloadError]:
    """The error with a code, as it came from another process; `InternalError` for one that is not known."""
    return _BY_CODE.get(code, InternalError)


def _with_subclasses(kind: type[OffloadError]) -> dict[str, type[OffloadError]]:
    found = {kind.code: kind}
    for subclass in kind.__subclasses__():
        found |= _with_subclasses(subclass)
    return found


_BY_CODE = _with_subclasses(OffloadError)
