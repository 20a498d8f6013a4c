"""A first model in about two minutes on two CPU cores; see launch/quickstart.sh."""

from configs import common


def get_config():
    """A narrow network and few steps: enough to see the method work, not to publish with."""
    config = common.get_config()
    config.data.batch_size = 4
    config.model.features = 8
    config.diffusion.t_max = 400
    config.optim.learning_rate = 2e-3
    config.optim.ema_decay = 0.99
    config.train.num_steps = 500
    config.train.log_every = 50
    config.train.val_every = 250
    config.train.checkpoint_every = 250
    config.train.preview_every = 500
    return config
