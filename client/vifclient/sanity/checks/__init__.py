"""The checks, a file for each part of the contract; importing this registers them, in the order in which they run."""

from vifclient.sanity.checks import (  # noqa: I001  the order of a report
    host,
    requests,
    fields,
    options,
    releases,
    batches,
    races,
    views,
    watches,
    updates,
    others,
    reasons,
)

__all__ = [
    "batches",
    "fields",
    "host",
    "options",
    "others",
    "races",
    "reasons",
    "releases",
    "requests",
    "updates",
    "views",
    "watches",
]
