"""Cell membranes in 3D with the conditional GAN of paper 003: walls between cells, and where in the organism they lie.

    python -m jaxsynth.train --config configs/gan_membranes.py --workdir runs/gan_membranes \\
        --config.data.path=FOLDER/images --config.gan.labels=FOLDER/masks --config.gan.image_labels=FOLDER/masks

Images and label images need not belong together: --config.gan.labels may be those of simulated specimens,
`python -m jaxsynth.simulate --recipe arabidopsis`. The paper's patch is (64, 128, 128), one at a time; several smaller
ones tell the critic more about how bright and how frequent things are. On a CPU, as measured in docs/gan.md:

        --config.model.features=8 --config.gan.critic_features=32 '--config.data.patch=(24,48,48)' \\
        --config.data.batch_size=2 --config.train.num_steps=900 --config.optim.ema_decay=0.995

Where label images are those of the images, or like them, add --config.gan.critic_mask=True.
"""

from configs import common


def get_config():
    """See the module."""
    config = common.get_config()
    config.task = "gan"
    config.data.batch_size = 4
    config.gan.mask = "boundary"
    # The published training: no shortcut, no noise, instance norm in both networks, RAdam 1e-3, percentile. In 3D it
    # collapsed here; what was seen before each of these was changed is in docs/gan_trials.md.
    config.data.normalization = "asinh"  # a linear one leaves the background's grain at a hundredth of the range
    config.gan.residual = True
    config.model.noise_channel = True
    config.model.norm = "none"  # normalised at every voxel alone (group), cells had steps in brightness
    config.gan.smooth_doublings = True  # without it and without norms, a pattern of the doublings
    config.gan.critic_norm = "none"
    config.gan.critic_gain = 4.0  # without a norm it else hardly learns, in 150 steps at least
    config.gan.sigma = 2.0  # walls are wider in images than in masks
    config.gan.clouds_vox = 16.0  # without it all backgrounds are equally bright, which the critic soon sees
    config.gan.critic_shift = 3  # stripes were seen without it, when doublings were not smooth
    config.gan.r1 = 0.05
    config.gan.critic_rate = 0.5
    config.gan.r1_every = 8
    config.gan.identity = 2.0
    config.optim.name = "adamw"
    config.optim.learning_rate = 5e-4
    config.optim.beta1 = 0.5
    config.optim.beta2 = 0.99
    config.optim.schedule = "cosine"
    config.optim.clip_norm = 0.0
    config.train.num_steps = 50_000
    return config
