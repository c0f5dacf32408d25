"""Speed, memory and rounding errors, measured against other software that runs the same weights."""
