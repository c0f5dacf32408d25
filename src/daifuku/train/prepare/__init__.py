"""Videos and pictures with captions to latents and text features that a trainer reads (`train/prepared.py`)."""
