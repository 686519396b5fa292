"""Business refusals: what may be answered instead of facts."""

from __future__ import annotations


class Refusal(Exception):
    """An expected 'no'. Its docstring is the message shown to people; `args[0]` says more."""

    @classmethod
    def title(cls) -> str:
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]


class NotFound(Refusal):
    """The thing does not exist."""


class Conflict(Refusal):
    """The thing exists and its state forbids this."""


class Invalid(Refusal):
    """The request cannot be understood as it stands."""


class Forbidden(Refusal):
    """The actor may not do this."""
