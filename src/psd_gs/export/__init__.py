"""Finished Gaussians to files: splat formats, pictures and films."""
