"""Numbers about networks: the states of their ReLU layers, the growth of their bounds, and findings from both.

Nothing is drawn here: `certtrain.render` shows the numbers in a terminal, `certtrain.reports` in documents.
"""
