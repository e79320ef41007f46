"""The search of settings on held-out examples, by Optuna: a space, a study in a database, and its trials as runs."""
