"""A trained diffusion model made fast: its consistency distillation, which samples in one to four evaluations.

    python -m jaxsynth.train --config configs/distill.py --workdir runs/fast --config.distill.teacher=runs/mine \\
        --config.data.path=FOLDER

Images as the teacher's were; network, diffusion process and intensity scale are the teacher's and cannot be set. A
step takes about twice as long as one of the teacher's. Then `python -m jaxsynth.sample --checkpoint runs/fast` as
before: two evaluations by default, `--num_evaluations 1` to 4.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    """See the module."""
    config = common.get_config()
    with config.unlocked():
        config.model = ConfigDict({"remat": config.model.remat})  # the rest is the teacher's
        config.diffusion = ConfigDict()  # the teacher's
    config.task = "distill"
    config.data.batch_size = 4
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 20
    config.optim.ema_decay = 0.99
    config.train.num_steps = 1000
    config.train.val_every = 250
    config.train.checkpoint_every = 250
    config.train.preview_every = 500
    return config
