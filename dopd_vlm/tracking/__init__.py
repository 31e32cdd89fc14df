"""What a run shows while it goes on: console, trackers, token maps."""
