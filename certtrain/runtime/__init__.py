"""Device, precision, threads, memory and time limits of a computation."""
