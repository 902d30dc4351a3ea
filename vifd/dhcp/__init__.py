"""DHCP, router advertisements and DNS for the guests of a network: one dnsmasq a network, and a supervisor of them all.

The supervisor is forked while vifd is root, and has read the configuration itself; what the unprivileged process may tell it is
that a network's hosts have changed, and that the configuration has. Which addresses guests get is in files that the unprivileged
process writes and dnsmasq may only read.
"""
