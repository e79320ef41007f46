"""Networks: built by name or from the user's own code, initialised, folded, saved as files."""
