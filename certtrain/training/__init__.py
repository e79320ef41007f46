"""Training: one loop for every method, its steps, its losses and its context."""
