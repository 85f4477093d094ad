"""How the emulation says no: one exception that carries the status, the substatus and the sentence of the answer."""

from bench.errors import BenchMisused

CODES = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    408: "RequestTimeout", 409: "Conflict", 410: "Gone", 412: "PreconditionFailed", 413: "RequestEntityTooLarge",
    424: "FailedDependency", 429: "TooManyRequests", 431: "RequestHeaderFieldsTooLarge", 449: "RetryWith",
    500: "InternalServerError", 503: "ServiceUnavailable",
}  # fmt: skip
"""The `code` that an error's body names for each status."""

PARTITION_KEY_MISMATCH = 1001
SESSION_NOT_AVAILABLE = 1002
OWNER_NOT_FOUND = 1003
QUERY_NEEDS_PLAN = 1004
CONTAINER_RECREATED = 1024
RANGE_GONE = 1002
WRITE_FORBIDDEN = 3
TOKEN_SIGNATURE = 5004
TOKEN_EXPIRED = 5006
TOKEN_AUDIENCE = 5008
NOT_FOR_TOKENS = 5300
METADATA_NOT_GRANTED = 5301
DATA_NOT_GRANTED = 5302
THROTTLED = 3200


class Refused(Exception):
    """Ends a request with an error answer; *charge_ru* is what the failed request cost all the same."""

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


class EmulatorMisused(BenchMisused):
    """What the emulator was started with makes no sense; raised before it listens."""


def bad(message: str, substatus: int = 0) -> Refused:
    """Refuse what cannot be meant, or what this emulation does not speak."""
    return Refused(400, message, substatus)
