"""Complete verification: branch and bound over the signs of neurons' inputs, and over inputs."""
