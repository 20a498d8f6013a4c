"""jaxsynth: realistic, fully annotated fluorescence microscopy images from simulated cells."""

__version__ = "0.1.0"
