"""Collects what is wrong with a request's fields."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import Message

from vifd.errors import InvalidRequest, Violation
from vifd.kernel.names import is_endpoint_id

_E = TypeVar("_E", bound=StrEnum)
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TEXT_BYTES, _LABELS = 255, 32


class Checker:
    """Collects violations.

    Args:
        prefix: where in the request the fields are that it checks.
        found: what was found so far.
    """

    def __init__(self, prefix: str = "", found: list[Violation] | None = None) -> None:
        self._prefix = prefix
        self.found: list[Violation] = [] if found is None else found

    def at(self, field: str) -> Checker:
        """Go down into a message: what is wrong there is told with its place."""
        return Checker(f"{self._prefix}{field}.", self.found)

    def require(self, condition: object, field: str, message: str) -> None:
        """Note a violation if a condition doesn't hold."""
        if not condition:
            self.found.append(Violation(f"{self._prefix}{field}".removesuffix("."), message))

    def known(self, message: Message) -> None:
        """Refuse fields that this vifd doesn't know: an option that can't be honoured is never ignored."""
        size = message.ByteSize()
        message.DiscardUnknownFields()
        self.require(
            message.ByteSize() == size,
            "unknown_fields",
            "this vifd doesn't know them; leave them out, or use a newer vifd",
        )

    def enum(self, message: Any, field: str, default: _E) -> _E:
        """Turn an enum's number into the model's member of the same name; 0 into the default."""
        number, kind = getattr(message, field), message.DESCRIPTOR.fields_by_name[field].enum_type
        name = kind.values_by_number[number].name if number in kind.values_by_number else ""
        self.require(name, field, f"{number} is no value of {kind.name} that this vifd knows")
        return next((member for member in type(default) if name.endswith(f"_{member.name}")), default)

    def endpoint_id(self, text: str, field: str = "endpoint_id") -> str:
        """Check an endpoint's id, and give it."""
        self.require(is_endpoint_id(text), field, "has to be a UUID in canonical lower-case form, and not the nil UUID")
        return text

    def text(self, field: str, text: str) -> str:
        """Check words of the caller's own, and give them."""
        self.require(len(text.encode()) <= _TEXT_BYTES, field, f"is longer than {_TEXT_BYTES} bytes")
        self.require(_CONTROL.search(text) is None, field, "has control characters")
        return text

    def labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Check labels, and give them."""
        self.require(len(labels) <= _LABELS, "labels", f"has more than {_LABELS} labels")
        counted = dict(itertools.islice(labels.items(), _LABELS + 1))
        for key, value in counted.items():
            where = f"labels[{key[:63]!r}]"
            self.require(_LABEL_KEY.fullmatch(key), where, "a key has 1 to 63 letters, digits, '.', '_', '/', '-'")
            self.text(where, value)
        return counted

    def done(self) -> None:
        """End the check.

        Raises:
            InvalidRequest: with every violation that was found.
        """
        if self.found:
            raise InvalidRequest(self.found)


def optional(message: Any, field: str, *, unset: Any) -> Any:
    """Give a field that may be unset, or what it is then."""
    return getattr(message, field) if message.HasField(field) else unset
