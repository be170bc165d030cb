"""Training detectors and segmenters from the command line: results, files, resuming, several processes, errors."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from timm_attn import dense
from timm_attn.cli import main
from timm_attn.train.log import read_summary

pytest.importorskip('accelerate')

ROOT = Path(__file__).parents[1]
COLOURS = {7: ('red', (200, 40, 40)), 9: ('blue', (40, 60, 200))}  # by category id
SMALL = ('--no-pretrained', '--output', 'runs', '--experiment', 'run', '-j', 0, '--device', 'cpu')
DETECTION = ('train-detection', 'boxes', *SMALL, '--backbone', 'mobilenetv2_035', '-b', 4)
SEGMENTATION = ('train-segmentation', 'pixels', *SMALL, '--backbone', 'mobilenetv2_035', '-b', 4, '--img-size', 32,
                '--classes', 'grey', 'red', 'blue')  # fmt: skip
SMALL_RCNN = ('--detector', 'fasterrcnn', '--backbone', 'resnet10t', '--model-kwargs', 'min_size=64', 'max_size=64',
              'rpn_post_nms_top_n_train=64', 'rpn_post_nms_top_n_test=64', 'box_batch_size_per_image=32')  # fmt: skip
RESULTS = {'args.yaml', 'curves.png', 'last.pth.tar', 'metrics.json', 'model', 'model_best.pth.tar', 'samples',
           'split.json', 'summary.csv'}  # fmt: skip


def picture(rng, size=64):
    """A grey image with a rectangle of each colour: the image, its mask, and the boxes (x, y, w, h)."""
    image = rng.integers(90, 160, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    boxes = []
    for index, (_, colour) in enumerate(COLOURS.values(), start=1):
        x, y = int(rng.integers(0, size // 2 - 8)) + (index - 1) * size // 2, int(rng.integers(0, size // 2))
        w, h = int(rng.integers(16, size // 2 - 8)), int(rng.integers(16, size // 2))
        w, h = min(w, size - x), min(h, size - y)
        image[y : y + h, x : x + w] = colour
        mask[y : y + h, x : x + w] = index
        boxes.append([x, y, w, h])
    return Image.fromarray(image), Image.fromarray(mask), boxes


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folders ``boxes`` (COCO) and ``pixels`` (masks) with 12 images to train on and 5 to validate on."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in dict(train=12, val=5).items():
        for folder in (f'boxes/{split}', 'boxes/annotations', f'pixels/{split}/images', f'pixels/{split}/masks'):
            Path(folder).mkdir(parents=True, exist_ok=True)
        content = dict(images=[], annotations=[], categories=[dict(id=i, name=n) for i, (n, _) in COLOURS.items()])
        for i in range(count):
            image, mask, boxes = picture(rng)
            image.save(f'boxes/{split}/{i}.png')
            image.save(f'pixels/{split}/images/{i}.png')
            mask.save(f'pixels/{split}/masks/{i}.png')
            content['images'].append(dict(id=100 + i, file_name=f'{i}.png', width=64, height=64))
            for category, (x, y, w, h) in zip(COLOURS, boxes, strict=True):
                outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                content['annotations'].append(
                    dict(id=len(content['annotations']) + 1, image_id=100 + i, category_id=category,
                         bbox=[x, y, w, h], area=w * h, iscrowd=0, segmentation=outline)
                )  # fmt: skip
        Path(f'boxes/annotations/instances_{split}.json').write_text(json.dumps(content))
    return tmp_path


def run(*args):
    return main([str(arg) for arg in args])


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def state(path):
    return torch.load(path, weights_only=True)['state_dict']


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], msg=lambda m, key=key: f'{key}: {m}', **tolerance)


def toolkit(folder, kind='bbox', predictions='predictions.json'):
    """AP that pycocotools computes from the files of a run."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(f'{folder}/annotations.json')
    evaluation = COCOeval(truth, truth.loadRes(f'{folder}/{predictions}'), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_detector(data, capsys):
    assert run('train-detection', 'boxes', *SMALL, '-b', 4, *SMALL_RCNN, '--epochs', 3, '--lr', 0.01) == 0
    out = capsys.readouterr().out
    assert '2 classes (red, blue); images to train: 12 with 24 objects, to validate: 5 with 10 objects' in out
    rows = read_summary(Path('runs/run/summary.csv'))
    assert len(rows) == 3
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    parts = ('loss_classifier', 'loss_box_reg', 'loss_objectness', 'loss_rpn_box_reg')
    assert rows[0]['train_loss'] == pytest.approx(sum(rows[0][f'train_{part}'] for part in parts))
    best = max(rows, key=lambda row: row['eval_AP'])
    assert best['eval_AP'] > 0
    assert f'best {best["eval_AP"]:.4f} in epoch {best["epoch"]:.0f}' in out
    assert json.loads(Path('runs/run/metrics.json').read_text())['AP'] == best['eval_AP']
    assert toolkit('runs/run') == pytest.approx(best['eval_AP'], abs=1e-6)
    extra = {'annotations.json', 'predictions.json', f'checkpoint-{best["epoch"]:.0f}.pth.tar'}
    assert names('runs/run') - {'run.lock'} == RESULTS | extra
    assert names('runs/run/samples') == {f'epoch-{i}.jpg' for i in range(3)}
    annotations = json.loads(Path('runs/run/annotations.json').read_text())
    assert {i['file_name'] for i in annotations['images']} == {f'val/{i}.png' for i in range(5)}
    model = dense.load('runs/run')
    assert (model.classes, model.category_ids) == (['red', 'blue'], [7, 9])
    same(model.state_dict(), state('runs/run/model_best.pth.tar'))
    config = json.loads(Path('runs/run/model/config.json').read_text())
    assert (config['builder'], config['classes']) == ('fasterrcnn', ['red', 'blue'])
    assert config['results']['AP'] == best['eval_AP']
    assert run('detect', 'boxes/val', '--weights', 'runs/run', '--threshold', 0) == 0


def test_segmenter(data, capsys):
    assert run(*SEGMENTATION, '--epochs', 4, '--lr', 0.05) == 0
    assert '3 classes (grey, red, blue); images to train: 12, to validate: 5\n' in capsys.readouterr().out
    rows = read_summary(Path('runs/run/summary.csv'))
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    assert {'eval_loss', 'eval_mIoU', 'eval_pixel_accuracy'} <= rows[0].keys()
    best = max(row['eval_mIoU'] for row in rows)
    details = json.loads(Path('runs/run/metrics.json').read_text())
    assert details['mIoU'] == best
    assert details['pixels'] == 5 * 64 * 64
    assert set(details['IoU_per_class']) == {'grey', 'red', 'blue'}
    model = dense.load('runs/run')
    assert (model.classes, model.ignore_index) == (['grey', 'red', 'blue'], 255)
    assert run('segment', 'pixels/val/images', '--weights', 'runs/run') == 0


@pytest.mark.slow
def test_masks_are_evaluated_and_frozen_layers_stay_frozen(data):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model('resnet18').state_dict(), 'resnet18.safetensors')
    args = ('train-detection', 'boxes', '--detector', 'maskrcnn', '--backbone', 'resnet18', '--pretrained-path',
            'resnet18.safetensors', *SMALL[1:], '-b', 2, '--model-kwargs', 'min_size=64', 'max_size=64',
            '--lr', 0.01)  # fmt: skip
    assert run(*args, '--epochs', 1) == 0
    before = state('runs/run/last.pth.tar')
    os.remove('resnet18.safetensors')  # a resumed run does not need it
    assert run('train-detection', '--resume', 'runs/run', '--epochs', 2) == 0
    after = state('runs/run/last.pth.tar')
    assert any(not torch.equal(before[key], after[key]) for key in before if '.layer4.' in key)
    for key in before:  # the stem and the first stage, and the statistics of all norms
        if re.search(r'model\.(conv1|bn1|layer1)\.|running_', key):
            assert torch.equal(before[key], after[key]), key
    metrics = json.loads(Path('runs/run/metrics.json').read_text())
    assert toolkit('runs/run', 'segm', 'predictions_masks.json') == pytest.approx(metrics['mask_AP'], abs=1e-6)
    trained = {key for key, p in dense.load('runs/run').named_parameters() if p.requires_grad}
    assert trained
    assert not any('.layer1.' in key for key in trained)
    new = [arg if arg != 'run' else 'new' for arg in (*args[:6], *args[8:])]
    assert run(*new, '--initial-checkpoint', 'runs/run', '--epochs', 1) == 0
    again = {key for key, p in dense.load('runs/new').named_parameters() if p.requires_grad}
    assert again == trained
    for key, value in state('runs/new/last.pth.tar').items():
        if re.search(r'model\.(conv1|bn1|layer1)\.|running_', key):
            assert torch.equal(before[key], value), key


def start(*args):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(
        [sys.executable, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


@pytest.mark.slow
@pytest.mark.parametrize('command', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_killed_run_ends_as_if_it_had_not_been(data, command):
    options = ('--epochs', 4, '--lr', 0.02, '--model-ema', '--sched', 'poly')
    whole = [arg if arg != 'run' else 'whole' for arg in command]
    finish(start('-m', 'timm_attn', *whole, *options))
    process = start('-m', 'timm_attn', *command, *options)
    summary = Path('runs/run/summary.csv')
    for _ in range(600):
        if len(read_summary(summary)) >= 2:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    process.stdout.close()
    out = finish(start('-m', 'timm_attn', command[0], '--resume', 'runs/run'))
    assert re.search('resumes with epoch [123]', out), out
    one, two = (torch.load(f'runs/{name}/last.pth.tar', weights_only=True) for name in ('whole', 'run'))
    same(one['state_dict'], two['state_dict'], rtol=1e-4, atol=1e-5)
    same(one['state_dict_ema'], two['state_dict_ema'], rtol=1e-4, atol=1e-5)
    rows = [read_summary(Path(f'runs/{name}/summary.csv')) for name in ('whole', 'run')]
    for a, b in zip(*rows, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-4)
    assert all(p.requires_grad for p in dense.load('runs/run').parameters())


TWO_RANKS = """
import sys, torch
from timm_attn.cli import main
from timm_attn.dense import train

fit = train.DenseRun.fit

def fit_and_dump(self):
    fit(self)
    weights = {**self.raw.state_dict(), **{f'ema.{k}': v for k, v in self.ema.module.state_dict().items()}}
    torch.save(weights, f'rank{self.args.rank}.pt')

train.DenseRun.fit = fit_and_dump
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('command', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_two_processes(data, command):
    """They keep the same weights and averages, and evaluate every image once."""
    Path('dump.py').write_text(TWO_RANKS)
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2)
    args = ('--lr', 0.02, '--epochs', 2, '--grad-accum-steps', 2, '-b', 3, '--model-ema')
    out = finish(start(*torchrun, 'dump.py', *command, *args))
    assert 'cpu in 2 processes' in out
    assert '1 step each: batch size 12' in out
    same(torch.load('rank0.pt', weights_only=True), torch.load('rank1.pt', weights_only=True), rtol=0, atol=0)
    evaluation = (*command, '--initial-checkpoint', 'runs/run', '--eval-only', '--experiment')
    finish(start(*torchrun, '-m', 'timm_attn', *evaluation, 'two'))
    finish(start('-m', 'accelerate.commands.launch', '--cpu', '-m', 'timm_attn', *evaluation, 'one'))
    one, two = (json.loads(Path(f'runs/{name}/metrics.json').read_text()) for name in ('one', 'two'))
    assert one.pop('loss', 0) == pytest.approx(two.pop('loss', 0), rel=1e-5)
    assert one == two
    assert one.get('images', 5) == 5
    assert one.get('pixels', 5 * 64 * 64) == 5 * 64 * 64


def test_evaluation_alone(data, capsys):
    args = ('--model-kwargs', 'variant=voc', '--epochs', 1)
    assert run(*DETECTION, *args) == 0
    printed = json.loads(Path('runs/run/metrics.json').read_text())
    evaluation = ('train-detection', 'boxes', '--eval-only', '--output', 'runs', '--experiment', 'again', '-j', 0)
    capsys.readouterr()
    assert run(*evaluation, '--initial-checkpoint', 'runs/run', '--device', 'cpu') == 0
    assert re.search(rf'^AP +{printed["AP"]:.4f}$', capsys.readouterr().out, re.M)
    assert json.loads(Path('runs/again/metrics.json').read_text()) == printed
    assert names('runs/again') == {'annotations.json', 'metrics.json', 'predictions.json', 'samples.jpg'}
    assert run('train-segmentation', 'pixels', '--classes', 'a', '--eval-only', '--initial-checkpoint', 'runs/run') == 2
    assert 'no segmenter' in capsys.readouterr().err
    assert run(*evaluation) == 2
    assert '--eval-only needs --initial-checkpoint' in capsys.readouterr().err
    assert run(*evaluation, '--initial-checkpoint', 'runs/run') == 2
    assert 'has the results of an evaluation already' in capsys.readouterr().err


def test_evaluation_writes_what_it_left_out(data, capsys):
    assert run(*DETECTION, '--model-kwargs', 'variant=voc', '--epochs', 1) == 0
    Path('boxes/val/3.png').write_bytes(b'no image')
    evaluation = ('train-detection', 'boxes', '--eval-only', '--output', 'runs', '--experiment', 'again', '-j', 0)
    args = (*evaluation, '--initial-checkpoint', 'runs/run', '--device', 'cpu', '--skip-invalid')
    assert run(*args) == 0
    assert 'left out, see defects.txt: 1 x unreadable image' in capsys.readouterr().out
    assert '3.png' in Path('runs/again/defects.txt').read_text()
    assert json.loads(Path('runs/again/metrics.json').read_text())['images'] == 4


def test_evaluation_needs_no_training_set(data):
    assert run(*DETECTION, '--model-kwargs', 'variant=voc', '--epochs', 1) == 0
    for path in (Path('boxes/train'), Path('boxes/annotations/instances_train.json')):
        path.rename(f'{path}.away')
    content = json.loads(Path('boxes/annotations/instances_val.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] == 9]  # blue alone
    content['categories'] = [c for c in content['categories'] if c['id'] == 9]
    Path('boxes/annotations/instances_val.json').write_text(json.dumps(content))
    evaluation = ('train-detection', 'boxes', '--eval-only', '--output', 'runs', '--experiment', 'again', '-j', 0)
    assert run(*evaluation, '--initial-checkpoint', 'runs/run', '--device', 'cpu') == 0
    metrics = json.loads(Path('runs/again/metrics.json').read_text())
    assert metrics['AP_per_class']['red'] is None
    assert metrics['objects'] == 5


def test_evaluation_of_a_segmenter_needs_no_names(data):
    Image.new('L', (64, 64), 9).save('pixels/val/masks/0.png')
    Image.new('L', (64, 64), 77).save('pixels/train/masks/0.png')  # a defect that does not matter
    assert run(*SEGMENTATION, '--epochs', 1, '--ignore-index', 9, '--skip-invalid') == 0
    evaluation = ('train-segmentation', 'pixels', '--eval-only', '--output', 'runs', '--experiment', 'again', '-j', 0)
    assert run(*evaluation, '--initial-checkpoint', 'runs/run', '--device', 'cpu') == 0
    one, two = (json.loads(Path(f'runs/{name}/metrics.json').read_text()) for name in ('run', 'again'))
    assert one == two
    assert one['pixels'] == 4 * 64 * 64


def test_start_from_a_trained_model_with_other_classes(data, capsys):
    assert run(*SEGMENTATION, '--epochs', 1) == 0
    other = [arg if arg not in ('grey', 'run') else dict(grey='a', run='other')[arg] for arg in SEGMENTATION]
    capsys.readouterr()
    assert (
        run(*other, 'green', '--initial-checkpoint', 'runs/run', '--epochs', 1, '--lr', 1e-30, '--warmup-epochs', 0)
        == 0
    )
    assert 'tensors are loaded; anew: classifier.1.weight, classifier.1.bias' in capsys.readouterr().out
    a, b = dense.load('runs/run').state_dict(), dense.load('runs/other').state_dict()
    assert len(b['classifier.1.bias']) == 4
    changed = {key for key in a if a[key].shape != b[key].shape or (
        not torch.equal(a[key], b[key]) and 'running' not in key and 'num_batches' not in key)}  # fmt: skip
    assert changed == {'classifier.1.weight', 'classifier.1.bias'}


def test_learning_rate_grows_with_the_batch_of_a_step(data, capsys):
    args = ('--epochs', 1, '--lr-base', 0.016, '-b', 2, '--grad-accum-steps', 3)
    assert run(*SEGMENTATION, *args) == 0
    assert '2 steps each: batch size 6, momentum, lr 0.006' in capsys.readouterr().out


def test_defects_are_reported_before_the_first_step(data, capsys):
    Image.new('L', (64, 64), 77).save('pixels/train/masks/3.png')
    Image.new('L', (10, 10)).save('pixels/val/masks/1.png')
    Path('pixels/train/images/5.png').write_bytes(b'no image')
    assert run(*SEGMENTATION) == 2
    err = capsys.readouterr().err
    found = (('3.png', 'unknown mask value'), ('1.png', 'wrong mask size'), ('5.png', 'unreadable image'))
    for name, kind in found:
        assert any(name in line and kind in line for line in err.splitlines())
    assert 'Are --classes and --ignore-index those of the masks?' in err
    assert not Path('runs').exists()
    assert run(*SEGMENTATION, '--skip-invalid', '--epochs', 1) == 0
    listed = Path('runs/run/defects.txt').read_text().splitlines()
    assert len(listed) == 3
    assert all(any(name in line and kind in line for line in listed) for name, kind in found)
    out = capsys.readouterr().out
    assert 'images to train: 10, to validate: 4\n' in out
    assert 'left out, see defects.txt: 1 x' in out


def test_the_two_boxes_of_bccd(tmp_path, monkeypatch, capsys):
    archive = ROOT.parent / 'shared' / 'data' / 'bccd.zip'
    if not archive.exists():
        pytest.skip(f'needs {archive}')
    monkeypatch.chdir(tmp_path)
    import zipfile

    zipfile.ZipFile(archive).extractall('.')
    assert run('train-detection', 'bccd', *SMALL) == 2
    err = capsys.readouterr().err
    assert 'has defects: 2 x zero-size box' in err
    assert all(f'BloodImage_{number}.xml: object' in err for number in ('00338', '00343'))
    assert not Path('runs').exists()


def test_more_defects_than_fit_on_a_screen_are_in_a_file(data, capsys):
    content = json.loads(Path('boxes/annotations/instances_train.json').read_text())
    content['annotations'] += [dict(content['annotations'][0], id=100 + i, bbox=[5, 5, 0, 9]) for i in range(60)]
    Path('boxes/annotations/instances_train.json').write_text(json.dumps(content))
    assert run(*DETECTION) == 2
    assert f'and 10 more, all of them in {Path("runs/run/defects.txt")}' in capsys.readouterr().err
    assert len(Path('runs/run/defects.txt').read_text().splitlines()) == 60


def test_loss_that_is_not_finite_names_the_images(data, capsys):
    assert run(*SEGMENTATION, '--lr', 1e30, '--warmup-epochs', 0, '--epochs', 2) == 2
    err = capsys.readouterr().err
    assert re.search(r'The loss became \S+ in epoch \d, on the batch of \d+\.png, \d+\.png, \d+\.png, \d+\.png', err)
    assert '--lr' in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('train-detection',), 'Name the folder of the data set'),
        (('train-detection', 'boxes', '--train-images', 'boxes/train'), 'not both'),
        (('train-detection', '--train-images', 'boxes/train'), 'must be named, too'),
        (('train-detection', 'boxes', '--eval-metric', 'mask_AP'), 'needs --detector maskrcnn'),
        (('train-detection', 'boxes', '--backbone', 'mobilenetv2_101'), 'did you mean'),
        (('train-detection', 'boxes', '--backbone', 'local-dir:x'), '--pretrained-path'),
        (('train-detection', 'boxes', *SMALL, '--model-kwargs', 'variant=imagenet'), "must be one of 'coco', 'voc'"),
        (('train-detection', 'boxes', *SMALL, '--model-kwargs', 'pretrained=1'), "Unknown argument 'pretrained'"),
        (
            ('train-detection', 'boxes', *SMALL, '--model-kwargs', 'min_size=9'),
            'create ssdlite320 on mbv2_ca with these',
        ),
        (('train-detection', 'boxes', *SMALL, '-b', 1), 'batch size of 2 or more'),
        (('train-detection', 'boxes', *SMALL, '--grad-accum-steps', 20), 'fewer than a step'),
        (('train-detection', 'nowhere', *SMALL), 'does not exist'),
        (('train-segmentation', 'pixels', *SMALL), '--classes NAME'),
        (('train-segmentation', 'pixels', *SMALL, '--classes', 'nmaes.txt'), 'nmaes.txt: there is no such file'),
        (('train-segmentation', 'boxes', *SMALL), 'none of the layouts'),
        (('train-segmentation', '--resume', 'nowhere'), 'the folder does not exist'),
        (
            ('train-segmentation', 'pixels', '--initial-checkpoint', 'nowhere', *SMALL, '--classes', 'a', 'b', 'c'),
            'There is no file',
        ),
    ],
)
def test_errors(data, args, message, capsys):
    try:
        status = run(*args)
    except SystemExit as e:
        status = e.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not Path('runs').exists() or not list(Path('runs').rglob('*.pth.tar'))


def test_run_is_resumed_with_its_own_images_and_options(data, capsys):
    assert run(*SEGMENTATION, '--epochs', 1) == 0
    options = yaml.safe_load(Path('runs/run/args.yaml').read_text())
    assert options['classes'] == ['grey', 'red', 'blue']
    assert run('train-segmentation', '--resume', 'runs/run', '--img-size', 64) == 2
    assert 'has img_size: 32' in capsys.readouterr().err
    assert run('train-detection', '--resume', 'runs/run') == 2
    assert 'options of timm-attn train-segmentation' in capsys.readouterr().err
    os.remove('pixels/train/images/3.png')
    os.remove('pixels/train/masks/3.png')
    assert run('train-segmentation', '--resume', 'runs/run', '--epochs', 2) == 2
    assert '1 gone (train/images/3.png)' in capsys.readouterr().err
    assert run(*SEGMENTATION) == 2
    assert 'has a run already' in capsys.readouterr().err
