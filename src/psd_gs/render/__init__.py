"""Rendering Gaussians: one contract, two backends."""

from psd_gs.render.rasterize import RenderOutput, render

__all__ = ["RenderOutput", "render"]
