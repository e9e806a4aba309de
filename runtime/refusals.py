"""What a transport itself answers, in the same words whichever transport it is."""

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError


def overloaded() -> GatewayError:
    """As many calls are under way as are taken."""
    return GatewayError(
        error_pb2.ERROR_REASON_OVERLOADED,
        "The service has too many calls under way; try again in a moment.",
    )


def draining() -> GatewayError:
    """The process is going down."""
    return GatewayError(
        error_pb2.ERROR_REASON_DRAINING, "The service is shutting down; try again in a moment."
    )


def expired() -> GatewayError:
    """The call's deadline has passed."""
    return GatewayError(
        error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        "The call was not done within its deadline; allow more time or ask for less.",
    )


def internal() -> GatewayError:
    """A defect, of which the caller learns nothing; the log has it."""
    return GatewayError(
        error_pb2.ERROR_REASON_INTERNAL,
        "The gateway failed on this call; its operator finds the cause in the log.",
    )


def cancelled() -> GatewayError:
    """The caller has lost interest."""
    return GatewayError(
        error_pb2.ERROR_REASON_CANCELLED, "The call was cancelled before it was done."
    )


def unknown_method() -> GatewayError:
    """Nothing serves the method."""
    return GatewayError(
        error_pb2.ERROR_REASON_NOT_FOUND,
        "The peer does not serve this method; run the same version of onegate everywhere.",
    )


def too_large(size: int, bytes_max: int) -> GatewayError:
    """A payload that no message may carry."""
    return GatewayError(
        error_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        f"A message of {size} bytes is over the limit of {bytes_max}; send less or raise "
        "[rpc] message_bytes_max.",
    )
