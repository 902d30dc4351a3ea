"""What every call goes through: who calls, the log, and errors as statuses."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from logging import DEBUG, getLogger
from typing import Any, NoReturn, TypeVar

import grpc

from vifd.errors import TryAgain, UnknownCaller, VifdError
from vifd.kernel.room import HelperLostError
from vifd.model import Caller
from vifd.server.status import message_of, status_code, to_status

_log = getLogger("vifd.server")
_DETAILS = "grpc-status-details-bin"
_Answer = TypeVar("_Answer")

Context = grpc.aio.ServicerContext[Any, Any]
FindCaller = Callable[[str], Caller | None]


class BugError(VifdError):
    """vifd has a bug."""


def unary(
    method: Callable[[Any, Any, Caller], Awaitable[_Answer]],
) -> Callable[[Any, Any, Context], Awaitable[_Answer]]:
    """Turn a method from message and caller to answer into a servicer's.

    The servicer has `find_caller`, from `context.peer()`.
    """

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Context) -> _Answer:
        started = time.monotonic()
        caller: Caller | None = None
        try:
            caller = _identify(self.find_caller, context)
            answer = await method(self, request, caller)
        except Exception as error:
            await abort(context, method.__name__, caller, error)
        if _log.isEnabledFor(DEBUG):
            _log.debug(
                "call", extra={**_about(method.__name__, caller), "milliseconds": round((time.monotonic() - started) * 1e3, 3)}
            )
        return answer

    return call


def stream(
    method: Callable[[Any, Any, Caller], AsyncIterator[_Answer]],
) -> Callable[[Any, Any, Context], AsyncIterator[_Answer]]:
    """Turn a method from message and caller to a stream into a servicer's; see `unary`."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Context) -> AsyncIterator[_Answer]:
        caller: Caller | None = None
        try:
            caller = _identify(self.find_caller, context)
            async for answer in method(self, request, caller):
                yield answer
        except Exception as error:
            await abort(context, method.__name__, caller, error)

    return call


def _identify(find_caller: FindCaller, context: Context) -> Caller:
    caller = find_caller(context.peer())
    if caller is None:
        raise UnknownCaller("vifd can't tell who calls; connect to its public socket")
    return caller


async def abort(context: Context, method: str, caller: Caller | None, error: Exception) -> NoReturn:
    """End a call with an error's status.

    Args:
        context: the call's.
        method: its name, for the log.
        caller: who calls; None: nobody knows.
        error: what went wrong; what vifd doesn't raise on purpose is a bug.
    """
    known = _translate(error)
    if known is error:
        _log.info("call failed", extra={**_about(method, caller), "reason": known.reason, "error": message_of(known)})
    else:
        _log.error("call failed", extra=_about(method, caller), exc_info=error)
    details = ((_DETAILS, to_status(known).SerializeToString()),)
    await context.abort(status_code(known), message_of(known), details)
    raise AssertionError("abort returned")


def _translate(error: Exception) -> VifdError:
    if isinstance(error, VifdError):
        return error
    if isinstance(error, HelperLostError):
        return TryAgain("vifd is starting anew")
    return BugError(f"vifd has a bug ({type(error).__name__}); its log has more")


def _about(method: str, caller: Caller | None) -> dict[str, Any]:
    return {"method": method, "uid": caller.uid if caller else None}
