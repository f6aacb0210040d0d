"""Text to 3D Gaussian splats and game-ready meshes under preference score distillation."""

__version__ = "0.1.0"
