"""What an error of S3 means: an outage, a lost race, or something that a person must set right."""

from typing import Any

from nanochat_core.artifacts.outages import reason_of
from nanochat_core.errors import StoreUnavailableError

_LOST_RACE_CODES = ("PreconditionFailed", "412")
_TOO_MANY_REQUESTS, _NOT_IMPLEMENTED = 429, 501

_PASSING_CODES = frozenset(
    {
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "RequestTimeout",
        "IncompleteBody",
        # Bytes that were changed on the way.
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        # Another conditional write of the same object was under way: the outcome is not known yet.
        "ConditionalRequestConflict",
    }
)


def code_of(error: BaseException) -> str:
    """The code in the server's answer; empty when there was none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def is_lost_race(error: BaseException) -> bool:
    """Whether a condition (If-Match, If-None-Match) did not hold.

    s3fs says FileExistsError only where the server names the condition, else EINVAL.
    """
    return isinstance(error, FileExistsError) or code_of(error) in _LOST_RACE_CODES


def is_outage(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    status = int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if status:
        is_servers_fault = status >= 500 and status != _NOT_IMPLEMENTED
        is_busy = status == _TOO_MANY_REQUESTS or code_of(error) in _PASSING_CODES
        return is_servers_fault or is_busy
    return isinstance(error, _network_errors())


def clearer(error: Exception, url: str) -> Exception | None:
    """The error to show instead, when a person must do something; no text holds a secret."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreUnavailableError(
            f"The store {url} needs credentials and there are none: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment, and AWS_ENDPOINT_URL for a server that is "
            "not Amazon's, then run again."
        )
    if code_of(error) == "NoSuchBucket":
        return no_bucket(url)
    if isinstance(error, PermissionError):
        return StoreUnavailableError(
            f"The store {url} refuses us ({code_of(error)}: {reason_of(error)}). Check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, and that these "
            "credentials may list, read, write and delete there."
        )
    return None


def no_bucket(url: str) -> StoreUnavailableError:
    """The error for a bucket that is not there."""
    return StoreUnavailableError(
        f"The store {url} has no bucket: make it first, or check its name and AWS_ENDPOINT_URL."
    )


def _response(error: BaseException) -> dict[str, Any]:
    """The server's answer, which s3fs keeps in the cause of its own errors."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _network_errors() -> tuple[type[BaseException], ...]:
    # Here, so that a local store imports neither.
    from aiohttp import ClientError
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    return (
        *(exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError),
        *(ResponseParserError, ClientError, ConnectionError, TimeoutError),
    )
