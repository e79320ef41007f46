"""Documents: the report of a run as one HTML file, and pictures of layer states and of growth as PNG files.

They show the numbers of `certtrain.diagnostics` and `certtrain.runs`; `certtrain.render` shows them in a terminal.
"""
