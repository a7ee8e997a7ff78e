"""What a node refuses or fails at, with the gRPC status that says whose fault it was.

NodeError                 something failed here (INTERNAL); `reason` is stable, the text is for people
├── ConfigError           a file of the node is wrong; names the file and the field
├── Refused               a rule says no (PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, …)
├── NotFound              no such list, member or entry (NOT_FOUND)
└── StorageError          the disk or the database failed; nothing was acknowledged
"""

import grpc


class NodeError(Exception):
    """Base: `reason` is a stable word for programs, the message is for people."""

    status = grpc.StatusCode.INTERNAL

    def __init__(self, message: str, reason: str = "FAILED") -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(NodeError):
    """A configuration, key or certificate file is wrong."""

    status = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str) -> None:
        super().__init__(message, "CONFIGURATION")


class Refused(NodeError):
    """A rule says no."""

    def __init__(
        self, message: str, reason: str, status: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED
    ) -> None:
        super().__init__(message, reason)
        self.status = status


class NotFound(NodeError):
    """There is no such thing here."""

    status = grpc.StatusCode.NOT_FOUND

    def __init__(self, message: str) -> None:
        super().__init__(message, "NOT_FOUND")


class StorageError(NodeError):
    """The disk or database failed; what was under way was not acknowledged and left nothing half done."""

    status = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str) -> None:
        super().__init__(message, "STORAGE")


def invalid(message: str) -> Refused:
    """The request itself is malformed."""
    return Refused(message, "INVALID", grpc.StatusCode.INVALID_ARGUMENT)
