"""Errors of Azure's SDKs, and their responses that are not successes, as errors of stores.

Imported lazily, because azure-core is slow to import.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from aiohttp import ClientConnectorError
from azure.core import exceptions

from hotplate.stores.cosmos.errors import SENTENCES, ErrorKind, Refusal, error_for, failed, first_line
from hotplate.stores.errors import StoreError

# By the codes of Azure Resource Manager, such as TooManyRequests.
STATUSES = {status.phrase.replace(" ", ""): status.value for status in HTTPStatus}


@contextmanager
def translated_errors(where: str, sentences: Mapping[ErrorKind, str] = SENTENCES) -> Iterator[None]:
    """Turn errors of an SDK, and of our readers of its responses, into StoreErrors; arguments as of `error_for`."""
    try:
        yield
    except TimeoutError as error:
        raise failed(f"{where} {SENTENCES['timeout']}", "timeout") from error
    except exceptions.AzureError as error:
        raise error_of(error, where, sentences) from error
    except (KeyError, OSError, ValueError) as error:
        raise failed(f"{where} {SENTENCES['malformed']}", "malformed") from error


def error_of(error: exceptions.AzureError, where: str, sentences: Mapping[ErrorKind, str] = SENTENCES) -> StoreError:
    """Return the StoreError for an error of an SDK; *where* and *sentences* as for `error_for`."""
    kind: ErrorKind
    match error:
        case exceptions.ClientAuthenticationError():  # of azure-identity, too
            kind = "unauthorized"
        case exceptions.DecodeError() if (error.status_code or 0) < 400:
            kind = "malformed"
        case exceptions.HttpResponseError():
            return error_for(refusal_of(error), where, sentences)
        case exceptions.ServiceRequestTimeoutError() | exceptions.ServiceResponseTimeoutError():
            kind = "timeout"
        case exceptions.ServiceRequestError(inner_exception=ClientConnectorError()):
            kind = "connect"
        case _:
            return failed(f"{where} gave no response: {first_line(str(error.message))}", "reset")
    return failed(f"{where} {sentences[kind]}: {first_line(str(error.message))}", kind)


def refusal_of(error: exceptions.HttpResponseError) -> Refusal:
    """Return the response that an SDK raised as an error.

    A change that was accepted and failed later is reported with the status 200, and the status of its failure as code.
    """
    status = error.status_code or 0
    if status < 400:
        status = STATUSES.get(code_of(error), status)
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    message = str(error.error) if code_of(error) else None  # a proxy's body may have a message, too
    return Refusal.of(status, message, headers.get)


def code_of(error: exceptions.HttpResponseError) -> str:
    """Return the code in the body of a response; empty without one."""
    return str(getattr(error.error, "code", None) or "")
