"""Runs a deep neural network across this device and an edge server, cut where the answer arrives earliest.

    from loadpart_device import OffloadClient

    with OffloadClient("127.0.0.1:50051", model="resnet50") as client:
        result = client.infer(image)  # uint8 array of shape (N, 224, 224, 3)
        print(result.output.argmax(axis=-1), result.plan.reason, result.timings.total)

Every error is an `OffloadError`; see `loadpart_common.errors` for the tree.
"""

from loadpart_common.engines.mindspore import protobuf_loader
from loadpart_common.errors import (
    AccessError,
    AuthenticationError,
    ClientClosedError,
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
    SettingsError,
    UnavailableError,
)
from loadpart_common.wire.credentials import Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.client import OffloadClient
from loadpart_device.result import Plan, Result, Timings

# An application may import MindSpore itself, at any time after this. MindSpore would then switch the whole process to
# another protobuf runtime than the one that gRPC uses, and the interpreter would crash.
protobuf_loader.install()

__all__ = [
    "AccessError",
    "AuthenticationError",
    "ClientClosedError",
    "Credentials",
    "CutError",
    "DeadlineError",
    "Endpoint",
    "InputError",
    "InternalError",
    "MessageTooLargeError",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "OffloadClient",
    "OffloadError",
    "OverloadedError",
    "PermissionDeniedError",
    "Plan",
    "RequestError",
    "Result",
    "ServerError",
    "SettingsError",
    "Timings",
    "UnavailableError",
]
