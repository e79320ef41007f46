"""Numbers about networks: the states of their ReLU layers, how bounds grow, and what is wrong by them.

Nothing is drawn here: `certtrain.render` shows the numbers in a terminal, `certtrain.reports` in documents.
"""
