"""The papers' diffusion model for your own images, 2D or 3D: the place to start from.

    python -m jaxsynth.train --config configs/ddpm.py --workdir runs/mine --config.data.path=FOLDER

One GPU, some hours. On CPU take configs/ddpm_gowt1.py (2D) or configs/ddpm_embryo3d.py (3D) as a pattern instead.
"""

from configs import common


def get_config():
    """The defaults of common.py."""
    return common.get_config()
