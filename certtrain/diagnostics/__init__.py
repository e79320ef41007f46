"""Networks looked into: the states of their layers, how bounds grow, and what the numbers mean."""
