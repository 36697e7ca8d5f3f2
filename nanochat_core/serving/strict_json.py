"""Bodies as JSON, read more strictly than Python does: what is doubtful is refused, not guessed."""

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from nanochat_core.serving.problems import MediaTypeError, RequestError, WithdrawnError

JSON_TYPE = "application/json"
_HALF_OF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictRoute(APIRoute):
    """A route whose body is JSON: of that type, in UTF-8, without anything that is read twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler behind our own reading of the body."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            read = _ReadRequest(request.scope, request.receive)
            await read.load()
            return await handler(read)

        return strict


class _ReadRequest(Request):
    """A request whose `json()` is what `load` has read."""

    async def load(self) -> None:
        """Read the body; RequestError for what is no strict JSON."""
        check_type(self.headers.get("content-type", ""))
        try:
            self._values = strict_json(await self.body())
        except ClientDisconnect as error:
            raise WithdrawnError("the client has gone") from error

    async def json(self) -> Any:
        """The body's value."""
        return self._values


def check_type(content_type: str) -> None:
    """Raise MediaTypeError for another type than JSON."""
    if content_type.partition(";")[0].strip().lower() != JSON_TYPE:
        raise MediaTypeError(
            f"the body is of type {content_type[:80]!r}; send a JSON object with "
            f"Content-Type: {JSON_TYPE}"
        )


def strict_json(body: bytes) -> Any:
    """The value of a JSON text.

    Refused beside what is no JSON: other encodings than UTF-8, NaN and infinities, one name twice
    in an object, half a surrogate pair (it stands for no character), numbers of thousands of digits
    and nesting of hundreds of levels.
    """
    try:
        values = json.loads(
            body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
        if _HALF_OF_PAIR.search(body):
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _no_json(f"byte {error.start} is not UTF-8") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise _no_json(
            f"{half} alone is half a surrogate pair, which stands for no character"
        ) from error
    except RecursionError as error:
        raise _no_json("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _no_json(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:  # int() refuses to work for hours
        raise _no_json("a number has too many digits") from error
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _no_json(f"it has {twice[:80]!r} twice in one object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise _no_json(f"{name} is no number of JSON")


def _no_json(reason: str) -> RequestError:
    return RequestError(
        f"the body is no JSON object that this server reads ({reason}); send one with "
        f"Content-Type: {JSON_TYPE}",
        code="invalid_json",
    )
