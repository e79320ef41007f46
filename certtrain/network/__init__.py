"""Networks: built by name or from a user's own code, initialised, folded, and saved as files."""
