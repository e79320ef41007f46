"""Properties of networks: what is asked, and whether it holds."""
