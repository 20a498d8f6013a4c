"""Nuclei with the conditional GAN of paper 003: their masks, and where in the organism they lie.

    python -m jaxsynth.train --config configs/gan_nuclei.py --workdir runs/gan_nuclei \\
        --config.data.path=FOLDER/images --config.gan.labels=FOLDER/masks --config.gan.image_labels=FOLDER/masks

In 2D or 3D as the images are. Where label images are those of the images, or like them, add
--config.gan.critic_mask=True: the critic then sees how bright each cell is to be. Small ones that train on a CPU in ten
minutes (2D) or half an hour (3D) are in jaxsynth/experiment_sets.py, `python -m jaxsynth.experiment --sets embryo3d
--arms gan`; in 2D with --config.gan.r1=0.01 --config.gan.critic_rate=1.0 --config.model.norm=none
--config.gan.smooth_doublings=True --config.gan.critic_shift=3, and --config.gan.clouds_vox=0 where dim cells go under
in clouds, blotches of their size.
"""

from configs import gan_membranes


def get_config():
    """See the module."""
    config = gan_membranes.get_config()
    config.gan.mask = "sketch"
    config.gan.sigma = 1.0
    # In 3D without norms the critic won, and with them smooth doublings learnt worse (docs/gan_trials.md).
    config.model.norm = "group"
    config.gan.smooth_doublings = False
    config.gan.critic_shift = 0
    return config
