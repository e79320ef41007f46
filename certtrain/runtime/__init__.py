"""What a run computes on and in: device, precision, memory, time."""
