"""A tiny Linux guest for the tests and the demo: Debian's cloud kernel, busybox, and one script as init.

`image` builds it of `packages`, `machine` runs it in QEMU, `unprivileged` starts a program as an ordinary user.
"""
