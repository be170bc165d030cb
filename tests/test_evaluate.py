"""``timm-attn evaluate``: accuracy on a folder, against numbers that are computed here."""

import csv
import json

import pytest
import timm
import torch
from PIL import Image
from test_package import cli
from timm.data import ImageDataset

from timm_attn.evaluate import evaluate, match_classes
from timm_attn.predict import load_classifier

LABELS = ['ant', 'bee', 'cow', 'doe']
SHADES = {'ant': (20, 30, 200), 'bee': (210, 190, 20), 'cow': (90, 90, 90)}


@pytest.fixture
def data(tmp_path):
    """A model of four classes, images of three of them in ``val``, and a file that is no image."""
    model = timm.create_model('resnet20_cifar', num_classes=4)
    torch.nn.init.normal_(model.get_classifier().weight)
    timm.models.save_for_hf(model, tmp_path / 'mine', model_config=dict(label_names=LABELS), safe_serialization=True)
    torch.save(model.state_dict(), tmp_path / 'mine.pth')
    for name, shade in SHADES.items():
        (tmp_path / 'data' / 'val' / name).mkdir(parents=True)
        for i in range(4):
            image = Image.effect_noise((40, 40), 60).convert('RGB')
            Image.blend(image, Image.new('RGB', (40, 40), shade), 0.2 * i).save(tmp_path / f'data/val/{name}/{i}.png')
    (tmp_path / 'data' / 'val' / 'bee' / 'bad.png').write_text('no image')
    return tmp_path


def test_numbers(data):
    """Against predict, image by image."""
    done = cli('evaluate', 'data', '--model', 'local-dir:mine', '-o', 'out.json', '-b', '5', cwd=data)
    found = json.loads((data / 'out.json').read_text())
    predicted = json.loads(cli('predict', 'data', '--model', 'local-dir:mine', '--json', cwd=data).stdout)[
        'predictions'
    ]
    pairs = [(p['image'].split('/')[2], p['classes'][0]['label']) for p in predicted]
    assert len(pairs) == 12
    right = sum(true == label for true, label in pairs)
    assert found['top1'] == pytest.approx(100 * right / 12)
    assert found['top5'] == 100
    assert found['unreadable'] == ['data/val/bee/bad.png']
    assert "left out: Cannot read 'data/val/bee/bad.png'" in done.stderr
    for row in found['classes']:
        assert row['images'] == 4
        assert row['correct'] == pairs.count((row['label'], row['label']))
    assert {(c['true'], c['predicted']): c['images'] for c in found['confusion']} == {p: pairs.count(p) for p in pairs}
    assert f'top-1  {100 * right / 12:6.2f} %' in done.stdout
    cli('evaluate', 'data', '--split', 'val', '--model', 'local-dir:mine', '-o', 'out.csv', cwd=data)
    with open(data / 'out.csv', newline='') as file:
        assert [(row['true'], row['predicted']) for row in csv.DictReader(file)] == pairs


def test_pictures(data):
    pytest.importorskip('matplotlib')
    cli('evaluate', 'data', '--model', 'local-dir:mine', '--plot', 'plot.png', '--grid', 'grid.png', cwd=data)
    for name in ('plot.png', 'grid.png'):
        with Image.open(data / name) as image:
            assert len(image.getcolors(10**6)) > 20
    assert not list(data.glob('*.part'))


def test_classes_are_matched_by_name(data):
    model = load_classifier(f'local-dir:{data / "mine"}')
    assert match_classes(model, ['doe', 'ant']) == {'doe': 3, 'ant': 0}
    with pytest.raises(ValueError, match=r'bees \(1 of 2\)\. Did you mean bee\?'):
        match_classes(model, ['ant', 'bees'])
    imagenet = timm.create_model('resnet18')
    assert match_classes(imagenet, ['n01440764', 'goldfish, Carassius auratus']) == {
        'n01440764': 0,
        'goldfish, Carassius auratus': 1,
    }
    with pytest.raises(ValueError, match='the same class'):
        match_classes(imagenet, ['n01440764', 'tench, Tinca tinca'])


def test_a_bare_checkpoint_needs_all_folders(data):
    options = ('--model', 'resnet20_cifar', '--checkpoint', 'mine.pth', '--num-classes', '4')
    done = cli('evaluate', 'data', *options, cwd=data, check=False)
    assert done.returncode == 2
    assert '4 classes without names' in done.stderr
    (data / 'data/val/doe').mkdir()
    Image.new('RGB', (40, 40)).save(data / 'data/val/doe/1.png')
    cli('evaluate', 'data', *options, '-o', 'bare.json', cwd=data)
    cli('evaluate', 'data', '--model', 'local-dir:mine', '-o', 'named.json', cwd=data)
    bare, named = (json.loads((data / f'{name}.json').read_text()) for name in ('bare', 'named'))
    assert bare['classes'] == named['classes']


def test_a_bare_checkpoint_has_its_classes_in_the_order_of_timm(data):
    """c2 before c10, and capitals as small letters, as its training numbered them."""
    order = ['Bee', 'c1', 'c2', 'c10']
    (data / 'data' / 'val' / 'doe').mkdir()
    for old, new in zip(LABELS, order, strict=True):
        (data / 'data' / 'val' / old).rename(data / 'data' / 'val' / new)
    names = list(ImageDataset(str(data / 'data' / 'val')).reader.class_to_idx)
    assert names == [name for name in order if name in names]
    model = timm.create_model('resnet20_cifar', num_classes=4)
    assert match_classes(model, sorted(order), own_checkpoint=True) == {name: i for i, name in enumerate(order)}


def test_in_python(data):
    model = load_classifier(f'local-dir:{data / "mine"}')
    with pytest.raises(ValueError, match=r'bad\.png'):
        evaluate(model, data / 'data')
    result = evaluate(model, data / 'data', on_unreadable=lambda path, reason: None)
    assert result.topk(4) == (12, 12)
    assert sum(result.topk(1, i)[0] for i in result.labels) == result.topk(1)[0]


def test_images_that_were_trained_on_are_told(data):
    (data / 'run').mkdir()
    (data / 'mine').rename(data / 'run' / 'model')
    split = dict(
        train=[f'val/{name}/{i}.png' for name in SHADES for i in range(3)], val=['val/ant/3.png', 'val/bee/3.png']
    )
    (data / 'run' / 'split.json').write_text(json.dumps(split))
    done = cli('evaluate', 'data', '--model', 'local-dir:run/model', cwd=data)
    assert 'trained on 9 images' in done.stderr
    done = cli('evaluate', 'data', '--model', 'local-dir:run/model', '--held-out', '-o', 'out.json', cwd=data)
    assert 'trained on' not in done.stderr
    images = [p['image'] for p in json.loads((data / 'out.json').read_text())['predictions']]
    assert images == ['data/val/ant/3.png', 'data/val/bee/3.png']
    done = cli('evaluate', 'data', '--model', 'local-dir:run', cwd=data, check=False)
    assert 'did you mean local-dir:run/model?' in done.stderr
    done = cli('evaluate', 'data', '--model', 'resnet20_cifar', '--held-out', cwd=data, check=False)
    assert done.returncode == 2
