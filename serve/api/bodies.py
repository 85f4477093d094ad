"""Bodies of requests: which are read, and what is said of the others."""

from aiohttp import hdrs, web

from hotplate.serve.api.parameters import MAX_BODY_BYTES
from hotplate.serve.api.problems import CLOSE, ClientGone, Problem


def check_body(request: web.BaseRequest) -> None:
    """Raise a Problem for a body that is refused before it is read."""
    # A small one that is compressed may be a gigabyte unpacked.
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem(415, "encoded-body", "a body is sent as it is, without Content-Encoding")
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise _too_large()


async def read_body(request: web.BaseRequest) -> bytes:
    """Return the body of a request; raises Problem, and ClientGone if the client hangs up inside it."""
    check_body(request)
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    except web.RequestPayloadError as error:
        raise unreadable(400, str(error)) from None
    except ConnectionError:
        raise ClientGone from None
    if len(body) > MAX_BODY_BYTES:  # an application around the service may let more through
        raise _too_large()
    return body


def unreadable(status: int, message: str | None) -> Problem:
    """Refuse what aiohttp cannot read."""
    reason = (message or "it is not HTTP/1.1").strip().partition("\n")[0].partition(":")[0][:200]
    return Problem(status, "bad-request", f"the request cannot be read: {reason}", CLOSE)


def _too_large() -> Problem:
    return Problem(413, "body-too-large", f"a body has at most {MAX_BODY_BYTES} bytes; send several requests")
