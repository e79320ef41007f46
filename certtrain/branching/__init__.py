"""Complete verification: branch and bound over the signs of rectifiers' inputs."""
