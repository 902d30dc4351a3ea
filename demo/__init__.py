"""`make demo`: vifd from beginning to end, in a network namespace that is gone afterwards.

`story` tells it, `stage` has what it is played on, `terminal` writes it down.
"""
