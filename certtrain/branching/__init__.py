"""Complete verification: branch and bound over the signs of rectifier inputs."""
