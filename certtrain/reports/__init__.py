"""Documents: the page of a run as one HTML file, by templates, and pictures of layers and of growth as PNG files.

They draw the numbers of `certtrain.diagnostics` and of `certtrain.runs`, as `certtrain.render` does in a terminal.
"""
