"""Rendering Gaussians: one contract, two backends."""

from psd_gs.render.rasterize import Backend, RenderOutput, render

__all__ = ["Backend", "RenderOutput", "render"]
