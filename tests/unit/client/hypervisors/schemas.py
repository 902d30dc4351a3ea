"""The published API descriptions of hypervisors, as far as the adapters speak to them."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_FOLDER = Path(__file__).with_name("schemas")


def validate(hypervisor: str, definition: str, value: Any) -> None:
    """Check a value against a definition; a property that it doesn't have is an error, as it is for the hypervisor.

    Raises:
        ValidationError: it doesn't fit.
    """
    description = json.loads((_FOLDER / f"{hypervisor}.json").read_text())
    for one in description["definitions"].values():
        one["additionalProperties"] = False
    Draft202012Validator({**description, "$ref": f"#/definitions/{definition}"}).validate(value)
