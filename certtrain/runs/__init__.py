"""The folder of a run: its files are written, locked and read here."""
