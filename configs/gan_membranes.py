"""Cell membranes in 3D with the conditional GAN of paper 003: walls between cells, and where in the organism they lie.

    python -m jaxsynth.train --config configs/gan_membranes.py --workdir runs/gan_membranes \\
        --config.data.path=FOLDER/images --config.gan.labels=FOLDER/masks --config.gan.image_labels=FOLDER/masks

Images and label images need not belong together: --config.gan.labels may be those of simulated specimens,
`python -m jaxsynth.simulate --recipe meristem`. The paper's patch, (64, 128, 128), is for accelerators.
"""

from configs import common


def get_config():
    """See the module."""
    config = common.get_config()
    config.task = "gan"
    config.data.patch = (64, 128, 128)
    config.data.batch_size = 1
    config.data.normalization = "percentile"  # the generator's output ends at 0 and 1
    config.gan.mask = "boundary"
    # The published one has instance norm in both networks, no noise and RAdam: see docs/gan.md for what came of it.
    config.model.norm = "group"
    config.gan.critic_norm = "instance"
    config.gan.identity = 5.0  # in 3D, with 1, the generator learned nothing before the critic was sure
    config.model.noise_channel = True
    config.optim.name = "adamw"
    config.optim.learning_rate = 5e-4
    config.optim.schedule = "constant"
    config.optim.clip_norm = 0.0
    config.train.num_steps = 50_000
    return config
