"""Clustering-based hard negative sampling (CHNS) for supervised contrastive speaker verification."""

__version__ = "0.1.0"
