"""What hypervisors can attach, and how: each module says which kinds it accepts, and turns every such kind into configuration.

The functions are pure: they start nothing and open nothing.
"""

from collections.abc import Iterable

from vif.v1.endpoint_pb2 import Endpoint


class UnacceptableEndpoint(ValueError):
    """The hypervisor can't attach this endpoint. Request it with the hypervisor's own `acceptable()`."""


def refuse(endpoint: Endpoint, hypervisor: str, accepted: Iterable[str]) -> UnacceptableEndpoint:
    """Make the error of an endpoint whose kind a hypervisor doesn't accept.

    Args:
        endpoint: The endpoint.
        hypervisor: The hypervisor's name.
        accepted: The kinds that it accepts.

    Returns:
        The error.
    """
    kind = endpoint.WhichOneof("location")
    what = f"is of kind {kind}" if kind else "has no location yet"
    return UnacceptableEndpoint(f"the endpoint {endpoint.endpoint_id} {what}: {hypervisor} attaches {' or '.join(accepted)}")
