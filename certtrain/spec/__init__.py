"""A run as data: presets, networks as layers, schedules; free of torch."""
