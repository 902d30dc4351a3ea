"""Who is measured: one file a contender, each in a network namespace of its own."""
