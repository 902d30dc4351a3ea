"""A hypervisor driver as an ordinary user would write one, with vifclient and QEMU. The tests run it as another user.

driver.py SOCKET request NETWORK ENDPOINT_ID QUEUES PORT
driver.py SOCKET boot ENDPOINT_ID fd|name QEMU...
driver.py SOCKET release ENDPOINT_ID
"""

from __future__ import annotations

import os
import sys

from google.protobuf import json_format

from vifclient import Client, VifError
from vifclient.hypervisors import qemu
from vifclient.messages import PortSpec, RequestEndpointRequest

_NETDEV_ID = "net0"


def request(client: Client, network: str, endpoint_id: str, queues: str, port: str) -> None:
    """Ask for what QEMU can attach, with a port in JSON."""
    acceptable = qemu.acceptable(queues=int(queues))
    wanted = json_format.Parse(port, PortSpec())
    client.request_endpoint(RequestEndpointRequest(endpoint_id=endpoint_id, network=network, acceptable=acceptable, port=wanted))


def boot(client: Client, endpoint_id: str, how: str, *machine: str) -> None:
    """Become QEMU, with the endpoint's queues handed over or opened by QEMU itself."""
    endpoint = client.get_endpoint(endpoint_id)
    fds = client.acquire_fds(endpoint_id).detach() if how == "fd" else None
    for fd in fds or ():
        os.set_inheritable(fd, True)
    client.close()
    os.execvp(machine[0], [*machine, *qemu.argv(endpoint, netdev_id=_NETDEV_ID, fds=fds)])


def release(client: Client, endpoint_id: str) -> None:
    """Give it back."""
    client.release_endpoint(endpoint_id)


def main() -> None:
    """Run one of the three."""
    socket, verb, *arguments = sys.argv[1:]
    with Client(socket) as client:
        try:
            match verb:
                case "request":
                    request(client, *arguments)
                case "boot":
                    boot(client, *arguments)
                case "release":
                    release(client, *arguments)
                case _:
                    sys.exit(__doc__)
        except VifError as error:
            sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
