"""What the running kernel can do: each feature is tried in a network namespace that is thrown away.

A test that needs one says so with `@pytest.mark.kernel("8021q")`, and is skipped elsewhere; one that shows what happens without
has `@pytest.mark.kernel_without("8021q")`. What takes another way with it than without runs on both kernels:
`@pytest.mark.kernel_varies("police")`.
"""

from __future__ import annotations

import functools
import json
import subprocess

from tests.support.daemon import network_namespace

#: By feature, the commands that work where the kernel has it.
PROBES: dict[str, tuple[str, ...]] = {
    "8021q": (
        "ip -n {netns} link add a0 type veth peer name b0",
        "ip -n {netns} link add link a0 name a0.7 type vlan id 7",
    ),
    "bridge-vlan-filtering": (
        "ip -n {netns} link add br0 type bridge vlan_filtering 1",
        "bridge -n {netns} vlan add vid 7 dev br0 self",
    ),
    "police": (
        "ip -n {netns} link add br0 type bridge",
        "tc -n {netns} qdisc add dev br0 ingress",
        "tc -n {netns} filter add dev br0 ingress protocol all u32 match u32 0 0 action police rate 1mbit burst 10kb drop",
    ),
}


@functools.cache
def why_missing(feature: str) -> str:
    """Say why the kernel hasn't a feature; empty: it has it."""
    with network_namespace() as netns:
        for command in PROBES[feature]:
            done = subprocess.run(command.format(netns=netns).split(), check=False, capture_output=True, text=True)
            if done.returncode:
                return f"this kernel has no {feature}: {command.split('{netns} ')[-1]}: {done.stderr.strip()}"
    return ""


if __name__ == "__main__":
    print(json.dumps({feature: why_missing(feature) for feature in PROBES}))
