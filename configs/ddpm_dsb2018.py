"""2D nuclei of many kinds (Data Science Bowl 2018, stage 1, fluorescence, 256 x 256 PNG, CC0).

    python -m jaxsynth.train --config configs/ddpm_dsb2018.py --workdir runs/dsb2018 --config.data.path=FOLDER

8 minutes on two CPU cores when they are free (2.1 steps/s), 1.7 GB. Held-out loss 0.083 after 1000 steps.
"""

from configs import common


def get_config():
    """See the module."""
    config = common.get_config()
    config.data.batch_size = 4
    config.diffusion.t_max = 500
    config.optim.name = "adamw"  # RAdam holds back for the first hundreds of steps
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 20
    config.optim.ema_decay = 0.99
    config.train.num_steps = 1000
    config.train.val_every = 200
    config.train.checkpoint_every = 200
    config.train.preview_every = 1000
    return config
