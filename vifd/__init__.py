"""vifd: the network interfaces of this host's virtual machines, made for unprivileged hypervisor drivers."""

__version__ = "0.1.0"
