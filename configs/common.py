"""Every key of a configuration, once, with its default. Experiments start from `get_config()` and change some."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the papers' diffusion model, in 2D or 3D as the images are."""
    c = ConfigDict()
    c.task = "ddpm"  # module of jaxsynth.tasks
    c.seed = 0  # root of every random stream of the run

    c.data = ConfigDict()
    c.data.path = ""  # folder, glob, file, or several of these separated by commas
    c.data.val_path = ""  # held-out images, likewise; empty: the last files of data.path
    c.data.val_fraction = 0.1  # share of the files held out where val_path is empty; one file holds out none
    c.data.channel = -1  # which channel of multi-channel images; -1: there is only one
    c.data.dataset = "data/image"  # data set inside HDF5 files
    c.data.spacing_um = ()  # voxel size (z, y, x) or (y, x) in micrometres; (): from the files' tags
    c.data.normalization = "asinh"  # asinh | percentile | minmax_shifted (the papers')
    c.data.patch = ()  # voxels, (y, x) or (z, y, x); (): 128 x 128 or 32 x 64 x 64, as the images are
    c.data.batch_size = 8  # patches per step, over all devices
    c.data.allow_padding = True  # images smaller than the patch are padded by reflection; False: refused
    c.data.symmetries = True  # random flips and quarter turns in the plane
    c.data.device_limit_gib = 4.0  # a larger training set stays on disk; with labels, or for a GAN, it is refused

    c.model = ConfigDict()
    c.model.features = 16  # channels of the first level; 16 is the published width
    c.model.norm = "group"  # group (free of tile statistics) | instance (the published) | none
    c.model.noise_channel = False  # one more input channel, of noise: published denoisers have it, published GANs not
    c.model.bfloat16 = False  # compute in bfloat16; parameters and norms stay float32
    # Recompute activations on the way back, for less memory and a third more work:
    c.model.remat = "auto"  # auto (where they do not fit the device) | always | never

    c.diffusion = ConfigDict()
    c.diffusion.schedule = "cosine"  # cosine | linear | quadratic | sigmoid
    c.diffusion.num_timesteps = 1000  # T
    c.diffusion.beta_min = 0.0  # 1e-4 for published checkpoints
    c.diffusion.t_max = 1000  # train on the first t_max steps only; sampling can start no later than here
    c.diffusion.prediction = "noise"  # what the network predicts: noise (the papers') | x0 | v
    c.diffusion.weighting = "none"  # of the loss over t: none | min_snr | edm
    c.diffusion.snr_cap = 5.0  # gamma of min_snr

    c.distill = ConfigDict()  # task distill only, see configs/distill.py
    c.distill.teacher = ""  # the run (its best checkpoint) or the checkpoint to distil
    c.distill.num_times = 8  # steps into which the teacher's way from t_max to the image is cut
    c.distill.t_max = 0  # sampling will start no later than here; 0: the teacher's t_max

    c.seg = ConfigDict()  # task flowseg only, see configs/flowseg.py
    c.seg.labels = ""  # label images of data.path, equal names; as many places as there, separated by commas
    c.seg.val_labels = ""  # of data.val_path
    c.seg.dataset = "data/instance"  # data set of the labels inside HDF5 files
    c.seg.target = "heat"  # flows to learn: heat (Cellpose's, for any shape) | centroid (the papers')
    c.seg.diameter_vox = 30.0  # images with larger cells are shrunk until these are so large; 0: never
    c.seg.scale = ()  # how much images are shrunk per axis, in (0, 1]; (): from the cells and diameter_vox
    c.seg.capacity = 0  # cells that an image has at most; 0: as many as there are
    # How patches are changed, each by up to so much (data/pairs.py, Augmentation):
    c.seg.zoom = 0.25  # size, as a factor
    c.seg.anisotropy = 0.1  # size along one axis
    c.seg.rotation = True  # any angle in the plane
    c.seg.contrast = 1.0  # gain, as a factor
    c.seg.gamma = 0.3  # exponent, as a factor
    c.seg.offset = 0.1
    c.seg.blur_vox = 1.0
    c.seg.noise = 0.15
    # Training without files: cells of a recipe are simulated and rendered where the network trains.
    c.seg.recipe = ""  # see jaxsynth.simulate; "": images and labels are files
    c.seg.checkpoint = ""  # run whose diffusion model renders them; "": the embedded microscope
    c.seg.t_start = 400  # as jaxsynth.sample takes it
    c.seg.num_evaluations = 5
    c.seg.shape = ()  # of a specimen; (): the patch
    c.seg.spacing_um = ()  # of a specimen; (): the checkpoint's, or the recipe's
    c.seg.reuse = 8  # steps that a batch of specimens is used for, each time with other patches

    c.gan = ConfigDict()  # task gan only, see configs/gan_membranes.py
    c.gan.labels = ""  # label images that masks are made of; need not belong to the images of data.path
    c.gan.image_labels = ""  # labels of data.path, equal names, for the organism's extent; "": from their brightness
    c.gan.val_image_labels = ""  # of data.val_path
    c.gan.dataset = "data/instance"  # data set of the labels inside HDF5 files
    c.gan.background_label = 0  # what is background in the labels
    c.gan.mask = "boundary"  # boundary (membranes) | cells (nuclei) | sketch (nuclei, each at a brightness of its own)
    c.gan.alpha_vox = 100.0  # scale of the position map in the organism, voxels along x (paper 003, eq. 1)
    c.gan.beta_vox = 100.0  # and outside
    # Masks without files: specimens of a recipe, simulated where the network trains.
    c.gan.recipe = ""  # see jaxsynth.simulate; "": gan.labels are files
    c.gan.shape = ()  # of a specimen; (): the recipe's
    c.gan.spacing_um = ()  # of a specimen; (): the images', or the recipe's
    c.gan.reuse = 8  # steps that a batch of specimens is used for, each time with other patches
    c.gan.loss = "logistic"  # adversarial: logistic (the paper's) | least_squares | hinge
    c.gan.identity = 1.0  # weight of the identity loss: real images in the masks' place are to stay as they are
    c.gan.residual = False  # the generator changes its mask, instead of drawing anew; the published one draws
    c.gan.smooth_doublings = False  # the generator's doublings can make no pattern from voxel to voxel; published: can
    c.gan.levels = ()  # grey values in [0, 1]: background, cells; of sketches background, dim, bright; (): the images'
    c.gan.grain = ()  # masks' grain at grey values from 0 to 1, see tasks/gan_input.py; (): the images', if residual
    c.gan.grain_correlation = ()  # of grain in neighbours along each axis, 0 to 0.7; (): the images', with the grain
    c.gan.sigma = 0.0  # blur of masks, voxels
    c.gan.clouds_vox = 0.0  # beside model.noise_channel one of noise that is smooth over so many voxels; 0: none
    c.gan.clouds = ()  # what it adds outside, within and on masks, see tasks/gan_input.py; (): what these leave open
    c.gan.critic_features = 64  # channels of the critic's first level; 64 is the published width
    c.gan.critic_norm = ""  # as model.norm, which is the generator's; "": the same
    c.gan.critic_mask = False  # whether the critic sees masks; for gan.labels that are as gan.image_labels, not others
    c.gan.critic_gain = 1.0  # contrast of images as the critic sees them
    c.gan.critic_rate = 1.0  # of the critic's learning rate to the generator's, which is optim.learning_rate
    c.gan.critic_shift = 0  # voxels by which at most what the critic sees of a patch is moved, by chance; 0: none
    c.gan.r1 = 0.0  # weight of the penalty on the critic's gradient; 0: none
    c.gan.r1_every = 16  # steps from one penalty to the next
    # Augmentation of what the critic sees (data/ada.py), the more often the surer it is of real images:
    c.gan.ada_target = 0.6  # mean sign of its logits of real images that is aimed at
    c.gan.ada_step = 0.05  # by how much the probability moves at a time; 0: not at all
    c.gan.ada_every = 50  # steps from one move to the next
    c.gan.ada_start = 0.0  # probability at first

    c.optim = ConfigDict()
    c.optim.name = "radam"  # radam (the papers') | adamw
    c.optim.learning_rate = 1e-3
    c.optim.beta1 = 0.9  # how slowly the mean of gradients forgets; less for networks that play against each other
    c.optim.beta2 = 0.999  # and the mean of their squares
    c.optim.schedule = "cosine"  # constant | cosine (to zero at num_steps)
    c.optim.warmup_steps = 0
    c.optim.weight_decay = 0.0  # adamw only
    c.optim.clip_norm = 1.0  # of the whole gradient; 0: no clipping
    c.optim.accumulate = 1  # micro-batches per step; batch_size is their sum
    c.optim.ema_decay = 0.999  # of the averaged parameters that samples are made with

    c.parallel = ConfigDict()
    c.parallel.space = 1  # devices that share one patch, split along y: for patches too large for one

    c.train = ConfigDict()
    c.train.num_steps = 20_000
    c.train.log_every = 50
    c.train.val_every = 500
    c.train.preview_every = 2_000
    c.train.checkpoint_every = 1_000
    c.train.keep_last = 2  # checkpoints kept beside the best one

    return c.lock()
