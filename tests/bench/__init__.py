"""vifd, its peers and the bare kernel, side by side, in one run: `python -m tests.bench`.

Every contender has a file in `contenders/`; README.md says what each does, what is measured and what the JSON holds.
"""
