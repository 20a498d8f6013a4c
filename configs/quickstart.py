"""A first model in about two minutes on two CPU cores; see launch/quickstart.sh."""

from configs import common


def get_config():
    """A narrow network and few steps: enough to see the method work, not to publish with."""
    config = common.get_config()
    config.data.batch_size = 4
    config.model.features = 8
    config.diffusion.t_max = 400
    config.model.norm = "instance"  # the images are small enough for one tile
    config.optim.name = "adamw"  # RAdam holds back for the first hundreds of steps, which are all there are here
    config.optim.learning_rate = 5e-3
    config.optim.ema_decay = 0.99
    config.train.num_steps = 600
    config.train.log_every = 50
    config.train.val_every = 300
    config.train.checkpoint_every = 300
    config.train.preview_every = 600
    return config
