"""Nuclei with the conditional GAN of paper 003: their masks, and where in the organism they lie.

    python -m jaxsynth.train --config configs/gan_nuclei.py --workdir runs/gan_nuclei \\
        --config.data.path=FOLDER/images --config.gan.labels=FOLDER/masks --config.gan.image_labels=FOLDER/masks

In 2D or 3D as the images are.
"""

from configs import gan_membranes


def get_config():
    """See the module."""
    config = gan_membranes.get_config()
    config.gan.mask = "sketch"
    config.gan.sigma = 1.0
    return config
