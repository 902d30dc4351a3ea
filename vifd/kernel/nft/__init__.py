"""nftables by netlink packed by hand: no process and no library on the way of a request.

`wire` packs messages and sends them as one transaction, `rules` says what a rule is made of, `sets` and `chains` make the guard's
table, `ruleset`; `elements` are what it has of a port, and `guard` keeps the table and them. `nat` has a table of its own.
"""
