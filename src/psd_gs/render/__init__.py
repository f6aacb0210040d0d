"""Rendering Gaussians: one contract, three backends."""

from psd_gs.render.choose import Backend, Renderer, choose_renderer, renderer_device
from psd_gs.render.rasterize import RenderOutput, render

__all__ = ["Backend", "RenderOutput", "Renderer", "choose_renderer", "render", "renderer_device"]
