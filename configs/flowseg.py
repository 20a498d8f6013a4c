"""Cell segmentation from images and labels, real or synthetic, in 2D or 3D.

    python -m jaxsynth.segment train --images FOLDER --labels FOLDER --workdir runs/segmenter

is this configuration with data.path and seg.labels set, so `jaxsynth.train --config configs/flowseg.py` does the same.
"""

from configs import common


def get_config():
    """See the module."""
    config = common.get_config()
    config.task = "flowseg"
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 1e-4
    config.optim.warmup_steps = 20
    config.optim.ema_decay = 0.99
    config.train.num_steps = 3000
    config.train.log_every = 50
    config.train.val_every = 250
    config.train.checkpoint_every = 250
    config.train.preview_every = 1000
    return config
