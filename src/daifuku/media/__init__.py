"""Frames to video files and back."""
