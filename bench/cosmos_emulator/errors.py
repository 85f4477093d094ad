"""Errors of the emulator: `HttpError` ends a request, and `EmulatorMisused` a start with options that make no sense."""

# The `code` that the body of an error response has for each status.
CODES = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    408: "RequestTimeout", 409: "Conflict", 410: "Gone", 412: "PreconditionFailed", 413: "RequestEntityTooLarge",
    424: "FailedDependency", 429: "TooManyRequests", 449: "RetryWith",
    500: "InternalServerError", 503: "ServiceUnavailable",
}  # fmt: skip

# Substatus codes, by the names that Microsoft's SDKs give them; 5004 and above are those of Entra ID and of roles.
WRITE_FORBIDDEN = 3
PARTITION_KEY_MISMATCH = 1001
READ_SESSION_NOT_AVAILABLE = 1002
PARTITION_KEY_RANGE_GONE = 1002
OWNER_RESOURCE_NOT_FOUND = 1003
CROSS_PARTITION_QUERY_NOT_SERVABLE = 1004
COLLECTION_RID_MISMATCH = 1024
REQUEST_RATE_TOO_LARGE = 3200
TOKEN_SIGNATURE_INVALID = 5004
TOKEN_EXPIRED = 5006
TOKEN_AUDIENCE_INVALID = 5008
TOKEN_NOT_AUTHORIZED = 5300
METADATA_PERMISSION_MISSING = 5301
DATA_PERMISSION_MISSING = 5302


class HttpError(Exception):
    """Ends a request with an error response; *charge_ru* is what the failed request is charged all the same."""

    def __init__(
        self,
        status: int,
        message: str,
        substatus: int = 0,
        *,
        headers: dict[str, str] | None = None,
        charge_ru: float = 0.0,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.substatus = substatus
        self.headers = headers or {}
        self.charge_ru = charge_ru
        self.details = details or {}


class EmulatorMisused(ValueError):
    """The emulator was started with options that make no sense; raised before it listens."""


def bad_request(message: str, substatus: int = 0) -> HttpError:
    """Make the error for a request that is not valid, or that this emulation does not support."""
    return HttpError(400, message, substatus)
