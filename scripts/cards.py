"""Model cards, in the Hub's format, from the manifest."""

import textwrap
from pathlib import Path

import timm
import yaml
from common import ROOT
from huggingface_hub import EvalResult, ModelCardData
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from timm_attn.models.info import summary
from timm_attn.train.recipes import command_of, recipe_path
from timm_attn.weights import Weight, weights

KINDS = dict(authors="the authors'", warm_start='warm start, not fine-tuned', trained='trained here', untrained='none')
DATASETS = {'ILSVRC/imagenet-1k': 'ImageNet-1k', 'uoft-cs/cifar10': 'CIFAR-10'}

MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright
notice and this permission notice shall be included in all copies or substantial portions of the Software. THE
SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def render_card(weight: Weight) -> str:
    """Model card of a weight, in the Hub's format: front matter and Markdown."""
    return f'---\n{_front_matter(weight)}\n---\n\n' + '\n\n'.join(
        [
            f'# Model card for {weight.name}',
            _first_words(weight),
            _details(weight),
            _usage(weight),
            _how_made(weight),
            _limitations(weight),
            _citation(weight),
        ]
    )


def _front_matter(weight: Weight) -> str:
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=weight.dataset,
            dataset_name=metric.dataset,
            dataset_split=metric.split,
            metric_type='accuracy',
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in weight.metrics
        if metric.measured
    ]
    data = ModelCardData(
        license=weight.license,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'timm-attn'] + [weight.paper.lower()] * weight.paper.startswith('arXiv:'),
        datasets=[weight.dataset] if weight.dataset else None,
        base_model=_base_model(weight),
        model_name=weight.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _base_model(weight: Weight) -> str | None:
    """Hub id of the weight it starts from; one of this zoo has none before it is published."""
    return f'timm/{weight.base_weight}' if weight.base_weight and weight.base_weight not in weights() else None


def _about(weight: Weight) -> str:
    return summary(weight.arch)


def _first_words(weight: Weight) -> str:
    if weight.kind == 'warm_start':
        return _fill(
            f'The attention in these weights is untrained: it starts as an exact identity, so the network '
            f'computes the same as its plain backbone `{weight.base_weight}`, bit for bit. '
            'Fine-tune it before you judge it.\n\n' + _about(weight)
        )
    return _about(weight)


def _details(weight: Weight) -> str:
    data = resolve_data_config(pretrained_cfg=get_pretrained_cfg(weight.name).to_dict())
    lines = [
        f'**Weights:** {KINDS[weight.kind]}',
        f'**Parameters:** {weight.params / 1e6:.2f} M',
        f'**Multiply-adds:** {weight.gmacs:.3f} G, **activations:** {weight.activations:.2f} M, for one image of '
        f'{_size(weight)}; counted over convolutions and matrix products',
        f'**Images:** {_size(weight)}, mean {data["mean"]}, std {data["std"]}, crop {data["crop_pct"]}, '
        f'{data["interpolation"]}',
        f'**Paper:** {_paper(weight.paper)}',
    ]
    if weight.kind != 'untrained':
        lines[-1:-1] = [f'**Classes:** {get_pretrained_cfg(weight.name).num_classes}, of {DATASETS[weight.dataset]}']
        lines += [
            f'**Source:** {_link(weight.origin)}',
            f'**Licence:** {weight.license}, stated at {weight.license_url}',
        ]
    if weight.sha256:
        lines.insert(-1, f'**File:** {weight.file_size} bytes, SHA-256 `{weight.sha256}`')
    if weight.git_blob_sha1:
        lines.insert(
            -1,
            f'**Original file:** git blob `{weight.git_blob_sha1}`; on the Hub its tensors are stored as safetensors',
        )
    lines += [f'**{m.name.capitalize()}:** {str(m).removeprefix(m.name + " ")}' for m in weight.metrics]
    return '## Details\n\n' + _bullets(lines)


def _usage(weight: Weight) -> str:
    if weight.kind == 'untrained':
        return _usage_untrained(weight)
    input_size = tuple(get_pretrained_cfg(weight.name).input_size)
    maps = timm.create_model(weight.arch, features_only=True, device='meta').feature_info.channels()
    return f"""## Usage

`import timm_attn` registers the model in timm. Without that line timm does not know the name, whether it is given
alone, by `hf-hub:` or by `local-dir:`, and raises "Unknown model".

### Classification

```python
import timm, timm_attn, torch
from PIL import Image

# or 'hf-hub:OWNER/{weight.name}', if it has been published
model = timm.create_model('{weight.name}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    probs = model(transform(Image.open('image.png').convert('RGB'))[None]).softmax(-1)
top5_probabilities, top5_classes = probs.topk(5)
```

### Features

```python
model = timm.create_model('{weight.name}', pretrained=True, features_only=True).eval()
maps = model(torch.randn(1, {', '.join(map(str, input_size))}))  # channels: {', '.join(map(str, maps))}
```

### Embeddings

```python
model = timm.create_model('{weight.name}', pretrained=True, num_classes=0).eval()
embedding = model(torch.randn(1, {', '.join(map(str, input_size))}))  # (1, {_embedding_width(weight)})
```"""


def _usage_untrained(weight: Weight) -> str:
    return f"""## Usage

`import timm_attn` registers the model in timm.

```python
import timm, timm_attn

model = timm.create_model('{weight.arch}', num_classes=10)  # random weights
```"""


def _embedding_width(weight: Weight) -> int:
    return timm.create_model(weight.arch, num_classes=0, device='meta').head_hidden_size


def _how_made(weight: Weight) -> str:
    if weight.kind == 'authors':
        text = (
            f"Published by the paper's authors at {weight.url}. Their tensors are renamed to timm's names when the "
            f'file is loaded; nothing else is changed.'
        )
    elif weight.kind == 'warm_start':
        text = (
            f'The weights of the plain backbone come from {_link(weight.origin)}. The last layer before each '
            f'gate of the attention is zero, which makes the gate sigmoid(0) = 0.5, and the layer next to the '
            f'attention is multiplied by the power of two that cancels it. Powers of two are exact in floating point, '
            f'so the logits are those of the backbone, and the zero layers receive gradients from the first step. '
            f'The other layers of the attention are freshly initialized.'
        )
    elif weight.kind == 'untrained':
        text = 'There are no weights for it here: it is built with random ones, and must be trained.'
    else:
        recipe = Path(weight.recipe or '').stem
        epochs = yaml.safe_load(recipe_path(recipe).read_text(encoding='utf-8'))['epochs']
        text = (
            f'Trained for {epochs} epochs by `timm-attn {command_of(recipe)}` with `{weight.recipe}` in the timm-attn '
            f'repository; log: `{weight.log}`.'
        )
    if weight.copyright and weight.license == 'mit':
        text += f'\n\nLicence of the weights: {weight.copyright}. {MIT}'
    return _fill('## How it was made\n\n' + text)


def _limitations(weight: Weight) -> str:
    lines = list(weight.notes)
    if weight.kind == 'warm_start':
        lines.insert(0, 'Until it is fine-tuned, it is its plain backbone at a higher cost.')
    if weight.kind == 'authors':
        lines.insert(0, 'The accuracy above is reported; it was not measured again here.')
    if weight.kind == 'trained':
        lines.insert(0, 'A small network for images of 32x32 pixels, for demonstrations and tests, not for production.')
        lines.insert(
            1,
            'The images were re-encoded as JPEG by their source: compare the figures only with those of the same '
            'recipe.',
        )
    if weight.dataset == 'ILSVRC/imagenet-1k':
        lines.append('Trained on ImageNet-1k, with its biases and its terms of use.')
    return '## Limitations\n\n' + _bullets(lines)


def _citation(weight: Weight) -> str:
    entries = [bibtex(weight.paper)]
    base = get_pretrained_cfg(weight.base_weight) if weight.base_weight else None
    base_paper = base.paper_ids if base and isinstance(base.paper_ids, str) else None
    if base_paper and base_paper != weight.paper:
        entries.append(bibtex(base_paper))
    return '## Citation\n\n' + '\n\n'.join(f'```bibtex\n{entry}\n```' for entry in entries) + '\n'


def bibtex(paper: str) -> str:
    """BibTeX entry of a paper that CITATION.cff lists.

    Args:
        paper: Such as ``arXiv:2405.05755``, or a URL.

    Raises:
        KeyError: If CITATION.cff does not list it.
    """
    number = paper.removeprefix('arXiv:').rpartition('/')[2]
    references = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))['references']
    found = {r['url'].rpartition('/')[2]: r for r in references}
    if number not in found:
        raise KeyError(f'CITATION.cff does not list {paper}.')
    ref = found[number]
    authors = ' and '.join(f'{a["family-names"]}, {a["given-names"]}' for a in ref['authors'])
    key = f'{ref["authors"][0]["family-names"].lower()}{ref["year"]}'
    key, where = (key + number.replace('.', ''), f'arXiv:{number}') if paper.startswith('arXiv:') else (key, paper)
    return (
        f'@article{{{key},\n  title = {{{ref["title"]}}},\n  author = {{{authors}}},\n'
        f'  journal = {{{where}}},\n  year = {{{ref["year"]}}}\n}}'
    )


def _paper(paper: str) -> str:
    if '://' in paper:
        return paper
    return f'https://arxiv.org/abs/{paper.removeprefix("arXiv:")}'


def _link(origin: str) -> str:
    return origin if '://' in origin else f'`{origin}`, inside the timm-attn package'


def _size(weight: Weight) -> str:
    return 'x'.join(map(str, weight.input_size))


def _fill(text: str) -> str:
    wrap = textwrap.TextWrapper(120, break_long_words=False, break_on_hyphens=False)
    return '\n'.join(wrap.fill(line) for line in text.split('\n'))


def _bullets(lines: list[str]) -> str:
    wrap = textwrap.TextWrapper(120, initial_indent='- ', subsequent_indent='  ', break_long_words=False,
                                break_on_hyphens=False)  # fmt: skip
    return '\n'.join(wrap.fill(line) for line in lines)
