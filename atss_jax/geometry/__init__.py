"""Boxes, anchors and their pyramid, non-maximum suppression: arithmetic on coordinates."""
