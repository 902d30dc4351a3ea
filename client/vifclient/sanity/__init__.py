"""`vif-sanity`: the conformance suite of the contract `vif.v1`, for any daemon that implements it.

It talks to a public socket and needs nothing else: no root, no kernel, no vifd. Each rule of the contract is a named check
(`vifclient.sanity.checks`), a function of a `Session`; the rule is quoted from the .proto files. What a daemon can't be made to
show from outside is skipped with the reason, never silently.

    checks ──▶ runner ──▶ report      text, JSON, JUnit
       └──▶ session: calls, names of its own, and cleans up
"""

import os
import signal
import sys


def main() -> None:
    """Run vif-sanity with the arguments of the process, and exit."""
    # What gRPC logs on stderr by itself stands in the error as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as CI ends a job: nothing stays behind, as after Ctrl-C
    from vifclient.sanity.command import run_sanity  # noqa: PLC0415  grpc reads the variable when it is imported

    sys.exit(run_sanity(sys.argv[1:]))
