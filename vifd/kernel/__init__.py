"""The kernel room: plan operations, the privileged helper that carries them out, and what the kernel tells back.

The only code that imports pyroute2, oslo.privsep or fcntl. `ops` and `names` are plain data for the drivers; `room` is what the
unprivileged process calls; `executor`, `authority`, `bridge`, `tap` and `netlink` run in the helper.
"""
