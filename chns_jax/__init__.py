"""Clustering-based hard negative sampling (CHNS) for speaker verification."""

__version__ = "0.1.0"
