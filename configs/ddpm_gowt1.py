"""Mouse stem cells, 2D (Cell Tracking Challenge, Fluo-N2DH-GOWT1)."""

from configs import common


def get_config():
    """See the module."""
    return common.get_config()
