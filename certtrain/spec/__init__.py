"""A run as data: presets, networks as layers, schedules; without torch."""
