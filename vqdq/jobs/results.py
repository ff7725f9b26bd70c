"""What finished runs return, as the JSON that lies in `result.json`.

File names are relative to the run's folder; a compressed model's `output` is a folder of its own.
`psnr` is None for equal pictures (JSON knows no infinity). Byte counts of a compressed model are
those of its denoiser's weight file.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class LayerRow(TypedDict):
    """One layer of a compression; see `vqdq.models.checkpoint.LayerResult`."""

    name: str
    method: str | None
    bits_per_weight: float
    error_db: float | None
    output_error_db: float | None
    bytes: int
    reference_bytes: int
    seconds: float
    activation: str | None
    activation_bits: int | None
    input_bytes: int


class LearntResult(TypedDict):
    """What fine-tuning did: noise-prediction SQNR on held-out prompts in dB, and its steps."""

    before_db: float
    after_db: float
    steps: int


class ArithmeticResult(TypedDict):
    """How the layers of a denoiser are computed, counted; see `vqdq.jobs.arithmetic`.

    Attributes:
        layers: linear layers and convolutions, all of them.
        integer: in integer products; fp8: in products of 8-bit floats, absent from runs of before
            it was possible; simulated: the same codes in float; sixteen_bit: the others, whose
            input is taken as it comes.
        rounded_weights: of the first three, whose weight was rounded to 8 bits a row because its
            codec does not decode to the levels that are multiplied.
        reasons: why a layer with a quantized input is not computed in 8 bits -> layers.
        attention: attention layers with a quantizer; attention_simulated: that use it.
    """

    layers: int
    integer: int
    fp8: NotRequired[int]
    simulated: int
    sixteen_bit: int
    rounded_weights: int
    reasons: dict[str, int]
    attention: int
    attention_simulated: int


class OtherRow(TypedDict):
    """A component that was compressed beside the denoiser; its weight file is as planned."""

    component: str
    measured_bytes: int
    reference_bytes: int
    bits_per_weight: float


class CompressResult(TypedDict):
    """A finished compression. `predicted_bytes` was known before; it equals `measured_bytes`.

    Attributes:
        activations: what becomes of activations and attention, in words; "" for nothing.
        arithmetic: how its layers are computed, of the written model opened again; None for nothing
            quantized.
        calibrated: some layer was encoded for the inputs that calibration saw.
        other_components: what else was compressed; the sizes above are the denoiser's alone.
            Absent from runs of before it was possible.
        missing: components that the model needs to draw and that neither it nor its source has.
            Absent from runs of before it was possible.
        learnt: what fine-tuning did, or None.
        stages: seconds of each stage as they were.
        forecast: what was expected before it began (`vqdq.jobs.forecast.Forecast`), or None.
    """

    output: str
    recipe: str
    recipe_digest: str
    predicted_bytes: int
    measured_bytes: int
    reference_bytes: int
    bits_per_weight: float
    seconds: float
    peak_memory_bytes: int
    calibrated: bool
    other_components: NotRequired[list[OtherRow]]
    missing: NotRequired[list[str]]
    learnt: LearntResult | None
    activations: str
    arithmetic: ArithmeticResult | None
    stages: dict[str, float]
    forecast: dict[str, Any] | None
    layers: list[LayerRow]


class PlannedRow(TypedDict):
    """One layer of a plan for a target.

    Attributes:
        method: None for a layer kept in 16 bits; `settings`: what its rule says, in words.
        sensitivity: its share of what all layers would do to the prediction at equal noise.
    """

    name: str
    method: str | None
    settings: str
    bits_per_weight: float
    bytes: int
    sensitivity: float | None


class PlanResult(TypedDict):
    """Bits for each layer under a target; `recipe` is concrete and compresses to these bytes.

    Attributes:
        bits_per_weight: true average over the layers that could have been compressed.
        predicted_sqnr_db: of the noise prediction before fine-tuning; an estimate.
    """

    recipe: dict[str, Any]
    predicted_bytes: int
    reference_bytes: int
    bits_per_weight: float
    predicted_sqnr_db: float
    quantized_layers: int
    layers: list[PlannedRow]
    seconds: float


class VerdictResult(TypedDict):
    """What the judge of the demo model saw: does the picture show what was asked?"""

    passed: bool
    count: bool
    shapes: bool
    colours: bool
    sizes: bool
    relation: bool
    background: bool


class Setting(TypedDict):
    """What decides a picture beside the model, the prompt and the seed.

    Attributes:
        scheduler: its class; `scheduler_sha256`: of its configuration.
        dtype: of what the denoiser computes in; device: where it drew.
        environment: SHA-256 of the versions and of the kernels that were chosen.
    """

    scheduler: str
    scheduler_sha256: str
    steps: int
    guidance: float
    device: str
    dtype: str
    environment: str


class CardResult(TypedDict):
    """The most memory of a card that a picture took: as planned (weights exact, activations
    estimated; `vqdq.models.room`), and of all tensors as it was drawn.
    """

    planned_bytes: int
    measured_bytes: int


class Picture(TypedDict):
    """One drawn picture.

    Attributes:
        variant: what the request calls the model; `label`: for people.
        image: file name of the lossless PNG; its recipe is in the tEXt chunk "vqdq".
        seconds: of drawing, without loading; `load_seconds`: 0 when the model was warm.
        once_seconds: of `seconds`, what decoding and packing took at the first call; absent where
            that is less than a tenth.
        peak_memory_bytes: the model's tensors and the growth of the process while it drew.
        verdict: None when it cannot be judged; `verdict_reason` says why.
        bits_per_weight: true bits over the quantized layers; 16 for a model that is not compressed.
        bytes: of the denoiser's weight file; `reference_bytes`: in 16 bits.
        initial_latent_sha256: of the noise that the picture started from.
        activations: as in `CompressResult`; arithmetic: of the model that drew, where it stands.
        setting: under which it was drawn; pictures of one comparison must agree in it.
        extras: other measures by name ("clip"), where they were asked for.
        mode: how the model kept decoded weights ("hybrid" within `cache_bytes`); absent in pictures
            of versions that knew none, and of models that are not compressed.
        offload: packed weights were to be left in main memory; absent where they were not.
        waiting_bytes: of those that were, beside a card; 0 on the processor. With `offload` alone.
        card: where it was drawn on one.
    """

    variant: str
    label: str
    image: str
    seconds: float
    load_seconds: float
    peak_memory_bytes: int
    verdict: VerdictResult | None
    verdict_reason: str | None
    bits_per_weight: float
    bytes: int
    reference_bytes: int
    initial_latent_sha256: str
    activations: str
    arithmetic: ArithmeticResult | None
    setting: Setting
    extras: dict[str, float]
    mode: NotRequired[str]
    cache_bytes: NotRequired[int]
    offload: NotRequired[bool]
    waiting_bytes: NotRequired[int]
    card: NotRequired[CardResult]
    once_seconds: NotRequired[float]


class Distance(TypedDict):
    """How far two pictures of one seed are apart.

    Attributes:
        psnr: dB; None for equal pictures. `ssim`: 1 for equal pictures.
        mean_error, max_error: absolute difference of channels in 0 ... 1.
        changed: share of the pixels that differ at all.
        flip: mean FLIP error, 0 for equal pictures; see `vqdq.metrics.flip`.
        latent_cosine: cosine between the final latents.
    """

    psnr: float | None
    ssim: float
    mean_error: float
    max_error: float
    changed: float
    flip: float
    latent_cosine: float | None


class ComparedPicture(Picture, Distance):
    """A picture beside the reference.

    Attributes:
        error_map: file name of a PNG, black where nothing changed, bright at `error_scale` or more.
        flip_map: file name of a PNG of the FLIP error in 0 ... 1, in the colours of magma.
    """

    error_map: str
    error_scale: float
    flip_map: str


class Floor(TypedDict):
    """The reference against itself: how far pictures are apart that nobody compressed.

    Attributes:
        repeat: drawn a second time in the same way; None where it was measured for another set.
        rounding: drawn with the products of the denoiser in `dtype`.
        seconds: what measuring took; 0 when it was known.
    """

    repeat: Distance | None
    rounding: Distance
    dtype: str
    seconds: float


class PictureSet(TypedDict):
    """One prompt and seed, drawn by every model; None for what is not drawn yet."""

    prompt: str
    seed: int
    reference: Picture | None
    variants: list[ComparedPicture | None]
    floor: Floor | None


class Certificate(TypedDict):
    """Proof that the pictures differ by the model only.

    Attributes:
        same_start: every picture started from the same noise, bit for bit.
        initial_latent_sha256: of that noise.
        scheduler: its class.
        same_components: everything beside the denoiser is equal, weight by weight.
        problems: one sentence for each thing that differs and should not.
        kernels: operation -> the implementation that was chosen for it.
    """

    same_start: bool
    initial_latent_sha256: str
    scheduler: str
    same_components: bool
    problems: list[str]
    versions: dict[str, str]
    kernels: dict[str, str]
    device: str


class GenerateResult(Picture):
    """One picture and what decided it; `notice`: what a person should know, or ""."""

    model: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    notice: str


class CompareResult(TypedDict):
    """Pictures of one prompt and seed: the reference, then each variant in the asked order.

    Attributes:
        floor: the reference against itself, where it was asked for.
        sets: how many there are; more than one for a batch, whose pictures, the first set
            included, are read with `vqdq.jobs.batch.read`.
    """

    prompt: str
    seed: int
    steps: int
    guidance: float
    reference: Picture
    variants: list[ComparedPicture]
    images: dict[str, str]
    floor: Floor | None
    sets: int
    certificate: Certificate
    notices: list[str]
    seconds: float


class InspectedModel(TypedDict):
    """Records of one model, as `.npz` files; None where there is nothing to record.

    Attributes:
        activations: `capture.ActivationRecord`; attention: `capture.AttentionRecord`, or None, and
            `attention_reason` says why.
        trajectory: `models.following.Following` of the reference and this variant, its errors in
            it; None for the reference, and where the pipeline's sampler cannot be followed:
            `trajectory_reason` says why.
        weights: `capture.WeightRecords` of the layers that differ from the reference; None for the
            reference.
        seconds: of drawing, recording included; measured.
        plain_seconds: of the same drawing without recording; estimated from some calls that were
            made again without hooks. None for a variant.
    """

    variant: str
    label: str
    image: str
    activations: str
    attention: str | None
    attention_reason: str | None
    trajectory: str | None
    trajectory_reason: str | None
    weights: str | None
    seconds: float
    plain_seconds: float | None


class InspectResult(TypedDict):
    """What was recorded of the reference and of each variant, in the asked order.

    Attributes:
        layer: to look at first: the first of `layers`, or one that stands out.
        layers: recorded in detail at every step; `matched`: how many the request's pattern names.
        step: the chosen one, from 0.
        paired_steps: at which the outputs of layers were compared on the same inputs.
        seconds: of all of it; `stages`: of load, draw, pair, follow, weights, save.
    """

    prompt: str
    seed: int
    layer: str
    layers: list[str]
    matched: int
    step: int
    steps: int
    guidance: float
    reference: InspectedModel
    variants: list[InspectedModel]
    paired_steps: list[int]
    seconds: float
    stages: dict[str, float]
