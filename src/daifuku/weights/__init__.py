"""Weight files: finding, reading and writing them, in the original and in the diffusers layout."""
