"""What works on this machine: packages, devices, arithmetics, tools, and how fast a training step is."""
