"""The schema of a recipe: every field with its type and meaning.

Recipes (`configs/*.py`) build an `ml_collections.ConfigDict` and write every field with its value
and reason; `config_check.check_config` turns it into these frozen dataclasses.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and what is done to them."""

    source: str
    """"coco_json" (annotation file and image folder), "tfds" (a builder of this package) or
    "array_record" (made by scripts/prepare_coco.py)."""
    name: str
    """tfds: builder name ("shapes"); otherwise a name for messages."""
    data_dir: str
    """tfds, array_record: folder of the prepared records."""
    train_annotations: str
    train_images: str
    val_annotations: str
    val_images: str
    """coco_json: annotation files and image folders (any path that etils.epath reads)."""
    train_split: str
    val_split: str
    """tfds, array_record: split names."""
    on_error: str
    """Bad records: "strict" stops with file and id, "skip" drops and counts them."""
    max_bad_fraction: float
    """skip: largest share of bad records before it stops all the same."""
    exif: str
    """EXIF orientation: "ignore" (the annotations were made on stored pixels, as COCO's), "apply"
    or "error"."""
    filter_empty: bool
    """Train only on images with objects (the official rule), or on all of them."""
    global_batch: int
    """Images a step over all devices and micro-batches."""
    buckets: tuple
    """Padded shapes (H, W), multiples of 32; one compiled program each."""
    short_side: int
    """Shorter side after resizing, px (evaluation, and training without a range)."""
    max_long_side: int
    """Limit of the longer side, px."""
    train_short_sides: tuple
    """Short sides to draw from in training, per image; () for `short_side` alone."""
    flip: float
    """Probability of a horizontal flip."""
    scale_crop: tuple
    """(min, max) factor of large-scale jitter, () for none."""
    color_jitter: float
    """Strength of brightness, contrast and saturation jitter, 0 for none."""
    max_boxes: int
    """Ground-truth slots of an image."""
    on_overflow: str
    """More boxes than slots: "error" or "largest" (keep the largest, counted)."""
    num_workers: int
    """Loader processes; 0 reads on the training process' threads."""
    prefetch: int
    """Batches prepared ahead of the step."""
    mean: tuple
    std: tuple
    channel_order: str
    """Pixel normalisation, in the order of the channels that the network sees: "rgb" or "bgr"."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; see `models.detector.Detector`."""

    backbone: str
    flavour: str
    """"torchvision" (stride in the 3x3) or "msra" (stride in the first 1x1)."""
    backbone_norm: str
    """"frozen_bn", "batch_norm" or "group_norm"."""
    width: float
    """Factor on all backbone widths."""
    frozen_stages: int
    """Stages without training: 0 none, 1 the stem, 2 also C2 (the official FREEZE_CONV_BODY_AT)."""
    dcn_stages: tuple
    """Backbone stages (3, 4, 5) whose 3x3 convolutions are deformable."""
    init_from: str
    """Weights file to start from (safetensors, npz; backbone or detector), "" for random."""
    fpn_channels: int
    p6_from: str
    """Input of P6: "p5" (ATSS, FCOS) or "c5" (RetinaNet)."""
    relu_before_p7: bool
    head_convs: int
    """3x3 convolutions of each tower."""
    head_norm: str
    """"group_norm" or "none"."""
    head_dcn: bool
    """The last convolution of both towers is deformable."""
    level_scale: bool
    """A learnable factor per level on the box regression."""
    centerness: str
    """Tower that carries the centerness branch: "box", "cls" or "none"."""
    regression: str
    """"box" (deltas against the anchor) or "point" (distances from its centre)."""
    point_activation: str
    """Activation of point regression: "relu" (normalised by the stride) or "exp"."""
    dtype: str
    """Compute type of the network: "float32" or "bfloat16"; parameters stay float32."""
    remat: str
    """What the backward pass recomputes: "none" or "blocks"."""


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """See `anchors.AnchorGrid`."""

    anchor_scale: float
    scales_per_octave: int
    aspect_ratios: tuple
    center_offset: float
    offset_px: float


@dataclasses.dataclass(frozen=True)
class AssignerConfig:
    """The definition of positives: what the paper is about."""

    name: str
    """"atss", "max_iou" (RetinaNet), "spatial_scale" (FCOS, centre sampling), "top_k_iou"."""
    candidates_per_level: int
    """atss: the paper's k. top_k_iou: positives an object over all levels."""
    foreground_iou: float
    background_iou: float
    """max_iou: positive from, negative below; between them ignored."""
    center_radius: float
    """spatial_scale: centre sampling radius in strides, 0 for the whole box."""
    positives_in_box: bool
    """max_iou: anchors whose centre lies outside their object are no positives."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """See `losses.detection_losses`."""

    box_loss: str
    """"giou", "iou" (-ln IoU) or "smooth_l1" (beta 0.11)."""
    box_loss_weight: float
    focal_alpha: float
    focal_gamma: float
    normalizer: str
    """"positives" (ATSS, FCOS) or "retinanet" (positives + images; 4 x positives)."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """See `optim.make_optimizer` and `optim.make_schedule`."""

    name: str
    learning_rate: float
    """For `reference_batch` images a step."""
    reference_batch: int
    lr_scaling: str
    """Another global batch: "linear", "none" or "refuse"."""
    schedule: str
    """"steps" or "cosine"."""
    num_steps: int
    """Length of the run in steps; 0 when `num_epochs` says it."""
    num_epochs: float
    """Length in passes over the training images; 0 when `num_steps` says it."""
    decay_at: tuple
    """"steps": where the rate decays, as fractions of the run."""
    decay_factor: float
    warmup: str
    warmup_steps: int
    warmup_factor: float
    momentum: float
    weight_decay: float
    bias_lr_factor: float
    bias_weight_decay: float
    clip_norm: float
    """Limit of the gradient norm, 0 for none."""
    accumulate: int
    """Micro-batches a step."""
    ema_decay: float
    """Average of the parameters that is evaluated; 0 for none."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Post-processing and metrics."""

    batch_size: int
    """Images a step over all devices."""
    score_threshold: float
    """On the class score, before centerness."""
    pre_nms_top_k: int
    """Candidates a level that enter NMS."""
    nms_iou: float
    max_detections: int
    score: str
    """Final score: "sqrt" of class x centerness (ATSS), "product" or "cls" (RetinaNet)."""
    multiscale: str
    """Test-time augmentation: "none", "flip", "light" or "paper" (26 passes)."""
    backend: str
    """"pycocotools" (the referee) or "hotcoco"."""
    format_only: bool
    """Write detections without metrics (COCO test-dev)."""
    num_pictures: int
    """Images drawn after an evaluation."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The loop."""

    seed: int
    log_every: int
    """Steps between progress lines."""
    checkpoint_every: int
    """Steps between checkpoints: at most so many are lost to a kill."""
    async_checkpoints: bool
    """Train on while a checkpoint is written; a kill then loses these steps as well."""
    eval_every: int
    """Steps between evaluations; 0 evaluates at the end only."""
    keep_last: int
    keep_best: int
    keep_every: int
    """Checkpoints kept: the newest, the best by AP, each at a multiple of this step (0: none)."""
    max_bad_steps: int
    """Non-finite steps in a row before the run stops."""
    distributed: str
    """"none", "auto" (TPU pod, SLURM, Open MPI) or "address" (the three below)."""
    coordinator: str
    """host:port of process 0."""
    num_processes: int
    process_id: int
    init_timeout: int
    """Seconds to wait for the other processes."""
    fsdp: bool
    """Shard parameters and optimizer state over the devices."""
    compilation_cache: str
    """Folder of compiled programs; "" uses the workdir's parent, "off" none."""
    profile_steps: tuple
    """(first, last) step to profile, () for none."""
    wandb: str
    """Weights & Biases project, "" for none."""


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """`--mode=predict`."""

    input: str
    """Image, folder, glob or video."""
    output: str
    """Folder for drawings and tables; "" is `predictions` in the workdir."""
    score_threshold: float
    """Drawn and listed from this score."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """`--mode=export`."""

    format: str
    """"stablehlo" or "onnx"."""
    batch_size: int
    """Fixed batch, or 0 for any."""
    platforms: tuple
    """Of "cpu", "cuda", "tpu"."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole recipe."""

    data: DataConfig
    model: ModelConfig
    anchors: AnchorConfig
    assigner: AssignerConfig
    loss: LossConfig
    optim: OptimConfig
    eval: EvalConfig
    run: RunConfig
    predict: PredictConfig
    export: ExportConfig
