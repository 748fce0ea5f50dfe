"""The decorator: each call with the same key is done once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from .._errors import ConfigurationError
from .._wrapping import bound_by, finished, is_async, key_by
from .recipe import Once
from .terms import Terms

__all__ = ("idempotent_by",)

F = TypeVar("F", bound=Callable[..., Any])
Arguments = tuple[Any, ...]


def idempotent_by(
    make: Callable[[str, Terms], Once],
    template: str | None,
    terms: Terms,
    fingerprint: Callable[..., Any] | None,
) -> Callable[[F], F]:
    """A decorator whose key is ``template`` filled in with the arguments of each call, or the call itself."""
    if fingerprint is not None and not callable(fingerprint):
        raise ConfigurationError(f"the fingerprint of a decorator is a function of its arguments, not {fingerprint!r}")

    def decorate(function: F) -> F:
        key_of = _whole_call(function) if template is None else key_by(template, function)

        def once(args: Arguments, kwargs: Mapping[str, Any]) -> Once:
            about = terms
            if fingerprint is not None:
                found = fingerprint(*args, **kwargs)
                about = replace(terms, fingerprint=[None] if found is None else found)  # which is one, too
            return make(key_of(args, kwargs), about)

        return _wrapped(function, once)

    return decorate


def _whole_call(function: Any) -> Callable[[Arguments, Mapping[str, Any]], str]:
    name, module = getattr(function, "__qualname__", "<lambda>"), getattr(function, "__module__", "__main__")
    if "<" in name or module == "__main__":
        raise ConfigurationError(
            f"{module}.{name} is no name of its own for a key, as others have it too: give a template"
        )
    from .keys import call_key

    bound = bound_by(function)
    return lambda args, kwargs: call_key(function, bound(args, kwargs))


def _wrapped(function: F, once: Callable[[Arguments, Mapping[str, Any]], Once]) -> F:
    if is_async(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            async with once(args, kwargs) as work:
                return work.result if work.replayed else await work.complete(await function(*args, **kwargs))

        return call_async  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with once(args, kwargs) as work:
            return work.result if work.replayed else work.complete(finished(function(*args, **kwargs), function))

    return call  # type: ignore[return-value]
