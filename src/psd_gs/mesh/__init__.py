"""Finished Gaussians to a triangle mesh, and meshes or point clouds to starting points."""
