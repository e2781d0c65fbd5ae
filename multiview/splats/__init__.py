"""Gaussian splats: rasterise, fit, read and write."""
