"""The client library of vifd: asks the daemon of this host for the network interfaces of virtual machines.

    import subprocess
    from uuid import uuid4

    from vifclient import Client
    from vifclient.hypervisors import qemu
    from vifclient.messages import RequestEndpointRequest

    with Client() as client:
        endpoint_id = str(uuid4())
        answer = client.request_endpoint(
            RequestEndpointRequest(endpoint_id=endpoint_id, network="default", acceptable=qemu.acceptable())
        )
        with client.acquire_fds(endpoint_id) as queues:
            argv = ["qemu-system-x86_64", *qemu.argv(answer.endpoint, netdev_id="net0", fds=queues)]
            subprocess.run(argv, pass_fds=queues)
        client.release_endpoint(endpoint_id)

`vifclient.aio.Client` is the same for asyncio. `vifclient.errors` draws what can go wrong, `vifclient.messages` has the words
of the contract, `vifclient.hypervisors` turns an endpoint into a hypervisor's configuration, and `vifclient.HypervisorDriver` is
the base of hypervisor drivers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vifclient.client import Client, Watch
    from vifclient.driver import HypervisorDriver, Interface, VirtualMachine, VmBusy
    from vifclient.errors import VifError
    from vifclient.queues import QueueFds
    from vifclient.retry import RetryPolicy

__all__ = [
    "Client",
    "HypervisorDriver",
    "Interface",
    "QueueFds",
    "RetryPolicy",
    "VifError",
    "VirtualMachine",
    "VmBusy",
    "Watch",
]

_HOMES = {
    "Client": "vifclient.client",
    "HypervisorDriver": "vifclient.driver",
    "Interface": "vifclient.driver",
    "QueueFds": "vifclient.queues",
    "RetryPolicy": "vifclient.retry",
    "VifError": "vifclient.errors",
    "VirtualMachine": "vifclient.driver",
    "VmBusy": "vifclient.driver",
    "Watch": "vifclient.client",
}


def __getattr__(name: str) -> object:
    # grpc takes a tenth of a second to import, and `vifctl --help` imports this package without needing it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
