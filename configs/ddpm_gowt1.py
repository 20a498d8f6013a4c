"""Mouse stem cells, 2D (Cell Tracking Challenge, Fluo-N2DH-GOWT1, sequence 01, 1024 x 1024).

    python -m jaxsynth.train --config configs/ddpm_gowt1.py --workdir runs/gowt1 --config.data.path=FOLDER

6 minutes on two CPU cores, 1.7 GB. Held-out loss 0.372 after 700 steps (0.407 after 500; RAdam: 0.413 after 1600); it
cannot fall far, since most of these images is camera noise, which nothing can tell from the noise of the diffusion.
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
    config.train.num_steps = 700
    config.train.val_every = 100
    config.train.checkpoint_every = 100
    config.train.preview_every = 700
    return config
