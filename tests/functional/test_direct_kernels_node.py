"""The kernel's own node of a macvtap, /dev/tapN: the owner gets it where it is the macvtap's, for libvirt opens no other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.asking import make
from tests.support.daemon import Daemon, network_namespace, running
from tests.support.uplinks import UPLINK, add_uplink, rare_index, skip_indexes
from vifclient import Client
from vifclient.messages import DriftKind, Endpoint, EndpointPreference, MacvtapPreference, Owner

NETWORKS = f'[networks.lan]\ndriver = "direct"\nuplink = "{UPLINK}"\nrepair = "report"\n'
MACVTAP = [EndpointPreference(macvtap=MacvtapPreference())]
ALICE, BOB = 20001, 20002


@contextlib.contextmanager
def hosting(index: int) -> Iterator[tuple[Daemon, Client]]:
    """A vifd whose first macvtap has an index not far beyond this one."""
    with network_namespace() as netns:
        skip_indexes(netns, index)
        add_uplink(netns)
        with running(networks=NETWORKS, netns=netns) as vifd, Client(vifd.socket) as client:
            yield vifd, client
            print(vifd.log()[-5000:])


def macvtap(client: Client, uid: int, gid: int | None = None) -> Endpoint:
    return make(client, network="lan", acceptable=MACVTAP, owner=Owner(uid=uid, gid=gid))


def kernels_node(endpoint: Endpoint) -> Path:
    return Path(f"/dev/tap{endpoint.macvtap.ifindex}")


@pytest.mark.parametrize(("gid", "owner"), [(None, ALICE), (4242, 0)])
def test_it_is_the_owners_unless_a_group_is_wanted_too(gid: int | None, owner: int) -> None:
    with hosting(rare_index()) as (_, client):
        endpoint = macvtap(client, ALICE, gid)
        found = kernels_node(endpoint).stat()
        assert found.st_rdev == Path(endpoint.macvtap.device_path).stat().st_rdev
        assert (found.st_uid, found.st_mode & 0o777) == (owner, 0o600)
        client.release_endpoint(endpoint.endpoint_id)
        assert not kernels_node(endpoint).exists()


def test_it_is_given_back_when_somebody_gives_it_away() -> None:
    with hosting(rare_index()) as (_, client):
        endpoint = macvtap(client, ALICE)
        os.chown(kernels_node(endpoint), BOB, -1)
        answer = client.check_endpoint(endpoint.endpoint_id, repair=True)
        assert [drift.kind for drift in answer.drifts] == [DriftKind.DRIFT_KIND_OWNER]
        assert kernels_node(endpoint).stat().st_uid == ALICE


def test_it_is_left_alone_where_it_is_another_namespaces_device() -> None:
    index = rare_index()
    with hosting(index) as (_, alices), hosting(index) as (_, bobs):
        first, second = macvtap(alices, ALICE), macvtap(bobs, BOB)
        assert kernels_node(first) == kernels_node(second)
        assert kernels_node(first).stat().st_rdev == Path(first.macvtap.device_path).stat().st_rdev
        assert kernels_node(first).stat().st_uid == ALICE
        assert bobs.check_endpoint(second.endpoint_id).drifts == []
        bobs.release_endpoint(second.endpoint_id)
        assert kernels_node(first).stat().st_uid == ALICE
