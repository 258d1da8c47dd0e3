"""Backbones under UPerNet and Semantic FPN: a class for every place of an image."""

from xnext.segmentation.networks import DECODERS, Segmenter, create_segmenter

__all__ = ["DECODERS", "Segmenter", "create_segmenter"]
