"""3D nuclei of mouse embryos (BBBC050, about 51 x 128 x 128).

    python -m jaxsynth.train --config configs/ddpm_embryo3d.py --workdir runs/embryo3d --config.data.path=FOLDER

23 minutes on two busy CPU cores, 2.3 GB. Held-out loss 0.461 after 800 steps.
"""

from configs import common


def get_config():
    """See the module."""
    config = common.get_config()
    config.data.patch = (32, 64, 64)
    config.data.spacing_um = (1.75, 0.8, 0.8)  # the files state none
    config.data.batch_size = 1
    config.data.val_fraction = 0.1  # the last embryo, both of its stages
    config.diffusion.t_max = 500
    config.optim.ema_decay = 0.995
    config.train.num_steps = 800
    config.train.val_every = 200
    config.train.checkpoint_every = 200
    config.train.preview_every = 400
    return config
