"""Looking at assets in a browser."""
