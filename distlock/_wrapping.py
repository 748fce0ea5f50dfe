"""What the decorators share: which functions they take, and keys that are filled in from the arguments of a call."""

from __future__ import annotations

import inspect
import string
import types
from collections.abc import Callable, Mapping
from typing import Any

from ._errors import ConfigurationError

__all__ = ("bound_by", "check_decoratable", "finished", "is_async", "key_by")


def key_by(template: str, function: object) -> Callable[[tuple[Any, ...], Mapping[str, Any]], str]:
    """From the arguments of a call of ``function`` to ``template``, filled in with them."""
    bound = bound_by(function)
    _check_template(template, bound.signature, getattr(function, "__qualname__", repr(function)))
    return lambda args, kwargs: template.format(**bound(args, kwargs))


class bound_by:  # noqa: N801 - called like a function
    """From the arguments of a call of ``function`` to all of its parameters, by name."""

    def __init__(self, function: Any) -> None:
        check_decoratable(function)
        try:
            self.signature: inspect.Signature = inspect.signature(function)
        except ValueError as error:
            raise TypeError(
                f"{error}, so that a key cannot be filled in from its arguments; wrap it in a def"
            ) from None

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments


def is_async(function: object) -> bool:
    """Whether a call gives a coroutine."""
    return any(inspect.iscoroutinefunction(each) for each in _bodies(function))


def check_decoratable(function: object) -> None:
    if isinstance(function, (staticmethod, classmethod, property)):
        raise TypeError(f"put the lock below @{type(function).__name__}, next to the def")
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"a lock decorates functions and coroutine functions, not {function!r}")
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in _bodies(function)):
        raise _unfinished(function, "is a generator")


def _bodies(function: Any) -> tuple[Any, ...]:
    """The function, and what an object of a class with ``__call__`` runs."""
    return function, getattr(type(function), "__call__", None)  # noqa: B004 - the method itself


def finished(result: Any, function: object) -> Any:
    """``result``, unless the work has only begun: a wrapper around a coroutine function, for one, hides what it is."""
    if isinstance(result, (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)):
        if not isinstance(result, types.AsyncGeneratorType):
            result.close()
        raise _unfinished(function, f"returned a {type(result).__name__}")
    return result


def _unfinished(function: object, what: str) -> TypeError:
    return TypeError(
        f"{getattr(function, '__qualname__', function)} {what}: its body runs after the call has returned,"
        " and would run without the lock. Take the lock inside it with a with block, or decorate the inner function"
    )


def _check_template(template: str, signature: inspect.Signature, name: str) -> None:
    if not isinstance(template, str):
        raise ConfigurationError(f"the key of {name} must be a str, not {template!r}")
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(f"the key template {template!r} of {name} does not parse: {error}") from None
    for _, field, spec, _ in fields:
        if field is None:
            continue
        parameter = field.split(".")[0].split("[")[0]
        if parameter not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise ConfigurationError(
                f"the key template {template!r} names {parameter!r}, which is no parameter of {name} (it has: {known})"
            )
        if spec:
            _check_template(spec, signature, name)
    if not template:
        raise ConfigurationError(f"the key template of {name} is empty")
