"""Faster ways to run a tower than open_clip's own, each with a switch that turns it off."""
