"""Properties of networks, and methods that decide whether they hold."""
