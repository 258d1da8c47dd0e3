"""Using trained networks: on any number of images."""
