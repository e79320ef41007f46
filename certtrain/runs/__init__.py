"""The folder of a run: its files written, locked and read back."""
