"""nftables by netlink packed by hand: no process and no library on the way of a request.

`wire` packs messages and sends them as one transaction, `rules` says what a rule is made of, `ruleset` is the guard's table, and
`guard` keeps the table and what it has of each port.
"""
