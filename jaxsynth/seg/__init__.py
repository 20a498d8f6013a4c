"""Label images to flow fields and back: what a segmentation network learns, and what its output is turned into."""
