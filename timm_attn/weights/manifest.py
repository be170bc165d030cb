"""The manifest, one row for each weight, and the files that ship inside the package.

``manifest.json`` is the only place where a weight's origin, licence, size and accuracy are written: timm's pretrained
cfgs, the model cards, the documentation's tables and ``timm-attn info`` are made from it.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, is_model

KINDS = ('authors', 'warm_start', 'trained', 'untrained')
MANIFEST = Path(__file__).with_name('manifest.json')
FILES = Path(__file__).with_name('files')

# What a warm start takes over from the cfg of its base weight: how images are prepared and what the head means.
_TAKEN_OVER = (
    'input_size', 'test_input_size', 'min_input_size', 'fixed_input_size', 'interpolation', 'crop_pct',
    'test_crop_pct', 'crop_mode', 'mean', 'std', 'num_classes', 'label_names', 'label_descriptions', 'pool_size',
    'test_pool_size', 'first_conv', 'classifier',
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of quality.

    Attributes:
        name: Such as ``top-1``.
        value: In percent.
        dataset: Data set, in words.
        split: Split of the data set.
        input_size: Height and width of the images in pixels; None where the report does not say.
        crop_pct: Share of the resized image that is kept; None where the report does not say.
        measured: Whether it was measured here; otherwise it is quoted.
        source: The command that measures it, or who reported it.
    """

    name: str
    value: float
    dataset: str
    split: str
    input_size: int | None
    crop_pct: float | None
    measured: bool
    source: str

    def __str__(self) -> str:
        kind = 'measured' if self.measured else 'reported'
        size = f'{self.input_size} px' if self.input_size else 'size not stated'
        crop = f'crop {self.crop_pct}' if self.crop_pct else 'crop not stated'
        return (
            f'{self.name} {self.value} % on {self.dataset}, {self.split} split, {size}, {crop} ({kind}: {self.source})'
        )


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One row of the manifest.

    Attributes:
        name: ``architecture.tag``.
        kind: ``authors`` (published by the paper's authors), ``warm_start`` (a plain backbone's weights, the attention
            an exact identity), ``trained`` (trained here, inside the package) or ``untrained`` (a model without
            weights).
        url: URL of the authors' file.
        git_blob_sha1: What git calls the authors' file: the SHA-1 of a header and its bytes.
        base_weight: Of a warm start: the weight it starts from, timm's or one of these.
        file: File inside the package.
        license: Licence as the Hub names it.
        license_url: URL of the licence.
        copyright: Notice that the licence requires to be kept.
        redistributable: Whether the licence lets the weight be published elsewhere.
        paper: arXiv identifier of the architecture, as timm writes it.
        dataset: Training data, as the Hub names it.
        recipe: Recipe it was trained with, from the root of the repository.
        log: Training log, from the root of the repository.
        params: Number of parameters.
        gmacs: Multiply-adds of one image in billions, those of convolutions and matrix products.
        activations: Output elements of convolutions and matrix products for one image, in millions.
        input_size: Channels, height and width that ``gmacs`` and ``activations`` were counted at.
        file_size: Bytes of the file, where it is known.
        sha256: Of the file, where it is known.
        metrics: Figures of quality, measured here or reported.
        notes: What a user should know.
    """

    name: str
    kind: str
    license: str
    paper: str
    params: int
    gmacs: float
    activations: float
    input_size: tuple[int, int, int]
    license_url: str | None = None
    copyright: str | None = None
    redistributable: bool = False
    url: str | None = None
    git_blob_sha1: str | None = None
    base_weight: str | None = None
    file: str | None = None
    dataset: str | None = None
    recipe: str | None = None
    log: str | None = None
    file_size: int | None = None
    sha256: str | None = None
    metrics: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f'{self.name}: kind {self.kind!r} must be one of {", ".join(KINDS)}.')
        needed = dict(authors=('url', 'git_blob_sha1'), warm_start=('base_weight',), trained=('file', 'sha256'))
        for field in needed.get(self.kind, ()):
            if getattr(self, field) is None:
                raise ValueError(f'{self.name}: a weight of kind {self.kind!r} needs {field!r}.')

    @property
    def arch(self) -> str:
        """Registered name of the model."""
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        """Tag of the weight."""
        return self.name.partition('.')[2]

    @property
    def top1(self) -> Metric | None:
        """The first top-1 accuracy, None if there is none."""
        return next((m for m in self.metrics if m.name == 'top-1'), None)

    @property
    def origin(self) -> str:
        """Where the weights come from: a URL, or the file inside the package."""
        if self.base_weight:
            base = weights().get(self.base_weight)
            return base.origin if base else f'https://huggingface.co/timm/{self.base_weight}'
        return self.url or self.file or '-'


@functools.cache
def weights() -> dict[str, Weight]:
    """Rows of the manifest by name, the default weight of each model first.

    Raises:
        TypeError: If a row has a field that is not one of :class:`Weight`, or lacks one.
        ValueError: If a row contradicts itself, or two have the same name.
    """
    table: dict[str, Weight] = {}
    for row in json.loads(MANIFEST.read_text(encoding='utf-8')):
        row['metrics'] = tuple(Metric(**metric) for metric in row.pop('metrics', ()))
        row |= {key: tuple(row[key]) for key in ('input_size', 'notes', 'logs') if key in row}
        weight = Weight(**row)
        if weight.name in table:
            raise ValueError(f'{weight.name} is in the manifest twice.')
        table[weight.name] = weight
    return table


def bundled(name: str) -> str:
    """Path of a weight file that ships with the package."""
    return str(FILES / name)


_PLAIN_BACKBONES: dict[str, str] = {}


def plain_backbone(arch: str) -> str:
    """Registered name of the network that a model is without its attention; the model itself where it has none.

    Args:
        arch: Registered name of a model of this package, without a tag.

    Raises:
        ValueError: If it is not one.
    """
    if arch not in _PLAIN_BACKBONES:
        raise ValueError(f'{arch!r} must be one of {", ".join(_PLAIN_BACKBONES)}.')
    return _PLAIN_BACKBONES[arch]


def pretrained_cfgs(cfg: dict, warm_start: bool = True, **plain: str) -> dict[str, dict]:
    """Pretrained cfgs of models, for ``timm.models.generate_default_cfgs``.

    A model's weights are those of its rows in the manifest. A model without a row starts warm from the default weight
    of its plain backbone.

    Args:
        cfg: Entries of the cfg that belong to the architecture, not to one weight.
        warm_start: Whether the attention can start as an identity; otherwise a model without a row has no weights.
        **plain: Registered name -> name of its plain backbone, which may be the model itself.
    """
    _PLAIN_BACKBONES.update(plain)
    rows = [row for row in weights().values() if row.arch in plain]
    cfgs = {row.name: _pretrained_cfg(row, cfg) for row in rows}
    for arch in plain.keys() - {row.arch for row in rows}:
        cfgs |= _warm_start_cfg(arch, plain[arch], cfg) if warm_start else {arch: cfg}
    return cfgs


def _warm_start_cfg(arch: str, plain: str, cfg: dict) -> dict[str, dict]:
    """Cfg of a warm start from the default weight of a backbone of timm; without weights where there is none."""
    source = get_pretrained_cfg(plain) if plain != arch and is_model(plain) else None
    if source is None or not source.hf_hub_id:
        return {arch: cfg}
    cfg = {'license': source.license, **cfg}
    return {f'{arch}.warm_{source.tag}': _from_source(cfg, dataclasses.asdict(source))}


def _from_source(cfg: dict, source: dict) -> dict:
    return {**cfg, **{key: source[key] for key in _TAKEN_OVER}, 'hf_hub_id': source['hf_hub_id']}


def imagenet_cfg(**kwargs) -> dict:
    """Pretrained cfg of a network made for ImageNet-1k at 224x224.

    Args:
        **kwargs: Entries that replace or extend these.
    """
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        **kwargs,
    }


def _pretrained_cfg(weight: Weight, cfg: dict) -> dict:
    cfg = {**cfg, 'paper_ids': weight.paper, 'license': weight.license}
    if weight.file:
        return {**cfg, 'file': bundled(weight.file)}
    if weight.kind == 'authors':
        return {**cfg, 'url': weight.url, 'origin_url': weight.license_url}
    if not weight.base_weight:
        return cfg
    base = weights().get(weight.base_weight)
    if base:
        return {**cfg, 'url': base.url}
    try:
        source = dataclasses.asdict(get_pretrained_cfg(weight.base_weight, allow_unregistered=False))
    except RuntimeError:  # a timm that does not have this weight any more: ours is not there either
        return cfg
    return _from_source(cfg, source)
