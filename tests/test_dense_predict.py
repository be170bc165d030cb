"""The commands detect and segment, their pictures and files, and models found by the folder of their run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import pil_to_tensor

from timm_attn import dense
from timm_attn.cli import main
from timm_attn.dense import draw
from timm_attn.dense.predict import detect_images, segment_images
from timm_attn.weights import CheckpointError

CLASSES = ['Platelets', 'RBC', 'WBC']
AREAS = ['sky', 'road', 'car']
SIZE = (90, 70)  # width and height of the images


def make_image(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def read(path):
    with Image.open(path) as image:
        return pil_to_tensor(image)


def certain(model, label):
    """Make a detector certain of one class in each of its boxes."""
    with torch.no_grad():
        if hasattr(model, 'roi_heads'):
            model.roi_heads.box_predictor.cls_score.bias[label] = 50
        else:
            for level in model.head.classification_head.module_list:
                last = level[-1] if isinstance(level, torch.nn.Sequential) else level
                last.bias.view(-1, len(CLASSES) + 1)[:, label] = 50
    return model


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Folders of runs, as training writes them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('runs')
    detector = certain(dense.ssdlite320('mbv2_ca_050', variant='voc', classes=CLASSES, detections_per_img=5), 2)
    masks = certain(
        dense.maskrcnn('csa_resnet18', classes=CLASSES, min_size=64, max_size=96, box_detections_per_img=4), 1
    )
    masks.category_ids = [90, 7, 13]
    segmenter = dense.deeplabv3('mbv2_ca_050', classes=AREAS)
    segmenter.ignore_index = 255
    for name, model in dict(detector=detector, masks=masks, segmenter=segmenter).items():
        (folder / name / 'model').mkdir(parents=True)
        dense.save(model, folder / name / 'model' / 'model.safetensors')
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*') if path.is_file())


# The commands


def test_detect(runs, here, capsys):
    make_image(here / 'photos' / 'a.jpg')
    make_image(here / 'photos' / 'a.png')
    make_image(here / 'photos' / 'below' / 'a-2.PNG')
    assert main(['detect', 'photos', '--weights', str(runs / 'detector'), '--json', 'found.json']) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        'photos/a.jpg: 5 RBC (detections/a.png)',
        'photos/a.png: 5 RBC (detections/a-2.png)',
        'photos/below/a-2.PNG: 5 RBC (detections/a-2-2.png)',
    ]
    assert err == ''
    assert files('detections') == ['a-2-2.png', 'a-2.png', 'a.png']
    picture = read('detections/a.png')
    assert picture.shape == (3, *SIZE[::-1])
    assert not torch.equal(picture, read('photos/a.jpg'))
    found = json.loads(Path('found.json').read_text())
    assert len(found) == 15
    assert [(x['image_id'], x['file_name']) for x in found[::5]] == [
        (1, 'photos/a.jpg'), (2, 'photos/a.png'), (3, 'photos/below/a-2.PNG'),
    ]  # fmt: skip
    assert {x['category_id'] for x in found} == {2}
    for x in found:
        left, top, width, height = x['bbox']
        assert 0 <= left <= left + width <= SIZE[0] + 1e-3
        assert 0 <= top <= top + height <= SIZE[1] + 1e-3
        assert x['score'] > 0.9
        assert 'segmentation' not in x


def test_the_threshold_is_for_pictures(runs, here, capsys):
    make_image(here / 'a.png')
    detector = dense.load(runs / 'detector')
    with torch.no_grad():
        for level in detector.head.classification_head.module_list:
            for parameter in level.parameters():
                parameter.zero_()  # each of 4 classes has a probability of a quarter
    dense.save(detector, here / 'weights.safetensors')
    command = ['detect', 'a.png', '--weights', 'weights.safetensors', '-o', 'out', '--json', 'out.json']
    assert main(command) == 0
    assert capsys.readouterr().out == 'a.png: nothing (out/a.png)\n'
    assert torch.equal(read('out/a.png'), read('a.png'))
    assert [x['score'] for x in json.loads(Path('out.json').read_text())] == [0.25] * 5
    assert main([*command, '--threshold', '0.25']) == 0  # and replaces what is there
    assert 'nothing' not in capsys.readouterr().out
    assert not torch.equal(read('out/a.png'), read('a.png'))
    with pytest.raises(SystemExit):
        main([*command, '--threshold', '2'])


def test_detect_with_masks(runs, here, capsys):
    make_image(here / 'a.png')
    assert main(['detect', 'a.png', '--weights', str(runs / 'masks' / 'model'), '--json', 'found.json']) == 0
    found = json.loads(Path('found.json').read_text())
    assert capsys.readouterr().out == f'a.png: {len(found)} Platelets (detections/a.png)\n'
    assert len(found) == 4
    ((_, _, prediction),) = detect_images(dense.load(runs / 'masks'), ['a.png'])
    for i, x in enumerate(found):
        assert x['category_id'] == 90  # the data set's, not the label
        decoded = rle.decode(dict(x['segmentation'], counts=x['segmentation']['counts'].encode()))
        assert np.array_equal(decoded, prediction['masks'][i, 0] > 0.5)


def test_segment(runs, here, capsys):
    make_image(here / 'photos' / 'a.jpg')
    make_image(here / 'photos' / 'b.png', size=(64, 130))
    command = ['segment', 'photos', '--weights', str(runs / 'segmenter'), '-o', 'out', '--masks', 'masks']
    assert main([*command, '--json', 'pixels.json']) == 0
    out, err = capsys.readouterr()
    assert err == ''
    assert re.fullmatch(r'photos/b\.png: (sky|road|car) [\d.]+ %.* \(out/b\.png\)', out.splitlines()[1])
    assert files('out') == files('masks') == ['a.png', 'b.png']
    pixels = json.loads(Path('pixels.json').read_text())
    assert [(x['file_name'], x['width'], x['height']) for x in pixels] == [
        ('photos/a.jpg', *SIZE), ('photos/b.png', 64, 130),
    ]  # fmt: skip
    model = dense.load(runs / 'segmenter')
    for x, (path, image, class_map) in zip(
        pixels, segment_images(model, ['photos/a.jpg', 'photos/b.png']), strict=True
    ):
        mask = Image.open(f'masks/{Path(path).stem}.png')
        assert mask.mode == 'L'
        assert np.array_equal(mask, class_map)
        assert x['pixels'] == {name: int((class_map == i).sum()) for i, name in enumerate(AREAS)}
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.backbone.mean, model.backbone.std))
        with torch.no_grad():
            expected = model(((image / 255 - mean) / std)[None])['out'].argmax(1)[0]
        assert torch.equal(class_map, expected)


def test_upright_and_large_images(runs, here, monkeypatch):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    make_image(here / 'a.jpg', exif=exif)
    model = dense.load(runs / 'segmenter')
    ((_, image, class_map),) = segment_images(model, ['a.jpg'])
    assert image.shape[1:] == class_map.shape == SIZE
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    monkeypatch.setattr('timm_attn.dense.predict.MAX_IMAGE_SIZE', 45)
    ((_, image, class_map),) = segment_images(model, ['a.jpg'])
    assert seen == [(1, 3, 45, 35)]
    assert image.shape[1:] == class_map.shape == SIZE


@pytest.mark.parametrize(('command', 'run'), [('detect', 'detector'), ('segment', 'segmenter')])
def test_unreadable_images(command, run, runs, here, capsys):
    make_image(here / 'photos' / 'b.png')
    (here / 'photos' / 'a.png').write_bytes(b'no image')
    options = ['--weights', str(runs / run), '-o', 'out', '--json', 'out.json']
    assert main([command, 'photos', *options]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("left out: Cannot read 'photos/a.png' as an image: ")
    assert err.count('\n') == out.count('\n') == 1
    assert files('out') == ['b.png']
    results = json.loads(Path('out.json').read_text())
    assert {x['file_name'] for x in results} == {'photos/b.png'}
    assert {x.get('image_id', 2) for x in results} == {2}
    assert main([command, 'photos/a.png', 'photos/b.png', *options]) == 2  # named by the user
    capsys.readouterr()
    Path('out.json').unlink()
    assert main([command, 'photos/a.png', *options, '-o', 'other']) == 2
    assert capsys.readouterr().err.startswith("error: Cannot read 'photos/a.png'")
    (here / 'photos' / 'b.png').write_bytes(b'')
    assert main([command, 'photos', *options, '-o', 'other']) == 2
    assert capsys.readouterr().err.endswith('error: none of these files can be read as an image\n')
    assert not Path('out.json').exists()
    assert not Path('other').exists()


def test_an_image_that_the_network_cannot_take(runs, here, capsys):
    make_image(here / 'thin.png', size=(1000, 1))
    make_image(here / 'b.png')
    assert main(['detect', 'thin.png', 'b.png', '--weights', str(runs / 'masks')]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("left out: The network cannot take 'thin.png' (1000 x 1 pixels): ")
    assert out.startswith('b.png: ')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['segment', 'a.png', '--weights', '{runs}/detector'], 'SSDLite is a detector: use .*timm-attn detect'),
        (['detect', 'a.png', '--weights', '{runs}/segmenter'], 'DeepLabV3 is a segmenter: use .*timm-attn segment'),
        (['detect', 'a.png', '--weights', '{runs}'], 'There is no model in .*; it has: detector, masks, segmenter'),
        (['detect', 'a.png', '--weights', 'nowhere'], "There is no file 'nowhere'"),
        (['detect', 'c.png', '--weights', '{runs}/detector'], "There is no image 'c.png'"),
        (['detect', 'a.png', '--weights', '{runs}/detector', '-o', 'a.png'], 'a.png is a file; name a folder'),
        (['detect', 'a.png', '--weights', '{runs}/detector', '-o', '.'], 'is one of the images and would be replaced'),
        (['segment', 'a.png', '--weights', '{runs}/segmenter', '--masks', '.'], 'name another folder by --masks'),
        (['segment', 'a.png', '--weights', '{runs}/segmenter', '-o', 'm', '--masks', './m'], 'name two folders'),
        (['detect', 'a.png', '--weights', '{runs}/detector', '--json', 'found.txt'], 'must end in .json'),
        (['detect', 'a.png', '--weights', '{runs}/detector', '--device', 'nonsense'], 'nonsense'),
    ],
)
def test_errors_are_one_line(arguments, message, runs, here, capsys):
    make_image(here / 'a.png')
    before = (here / 'a.png').read_bytes()
    assert main([argument.format(runs=runs) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert re.search(message, err), err
    assert files('.') == ['a.png']
    assert (here / 'a.png').read_bytes() == before


# Files of models


def test_a_run_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r'it is empty. A training run writes its model after the first epoch'):
        dense.load(tmp_path)
    (tmp_path / 'args.yaml').touch()
    (tmp_path / 'model').mkdir()
    with pytest.raises(CheckpointError, match=r'it has: args\.yaml, model'):
        dense.load(tmp_path)


def test_ids_are_kept(runs, tmp_path):
    detector, segmenter = dense.load(runs / 'masks'), dense.load(runs / 'segmenter' / 'model')
    assert (detector.category_ids, detector.ignore_index) == ([90, 7, 13], None)
    assert (segmenter.category_ids, segmenter.ignore_index) == (None, 255)
    segmenter.ignore_index = 2
    with pytest.raises(ValueError, match='ignore_index 2 is one of the classes 0 to 2'):
        dense.save(segmenter, tmp_path / 'model.safetensors')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(category_ids=[1, 2]), '3 names of classes; there are 2'),
        (dict(category_ids=[1, 2, 2]), '2 of them different'),
        (dict(category_ids=[1, 2, True]), 'a list of whole numbers'),
        (dict(category_ids=[1, 2, 2**70]), 'a list of whole numbers'),
        (dict(category_ids=dict(a=1)), 'a list of whole numbers'),
        (dict(category_ids='123'), 'a list of whole numbers'),
        (dict(ignore_index=[255]), 'must be a whole number'),
        (dict(ignore_index=2.0), 'must be a whole number'),
        (dict(ignore_index=0), 'one of the classes'),
    ],
)
def test_hostile_ids(changes, message, runs, tmp_path):
    source = runs / 'segmenter' / 'model' / 'model.safetensors'
    with safe_open(source, 'pt') as file:
        content = json.loads(file.metadata()['timm_attn'])
    path = tmp_path / 'model.safetensors'
    save_file(load_file(source), path, metadata={'timm_attn': json.dumps({**content, **changes})})
    with pytest.raises(CheckpointError, match=f'metadata .* are damaged: .*{message}'):
        dense.load(path)


def test_an_older_file(runs, tmp_path):
    source = runs / 'masks' / 'model' / 'model.safetensors'
    with safe_open(source, 'pt') as file:
        content = json.loads(file.metadata()['timm_attn'])
    del content['category_ids'], content['ignore_index']
    save_file(load_file(source), tmp_path / 'model.safetensors', metadata={'timm_attn': json.dumps(content)})
    model = dense.load(tmp_path)
    assert model.category_ids is None
    assert model.ignore_index is None


# Pictures


def grey(height=120, width=160):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def has_colour(picture, colour):
    return bool((picture == torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)).all(dim=0).any())


def test_colours_are_far_apart():
    colours = torch.tensor([draw.class_colour(i) for i in range(21)]).float()
    distances = torch.cdist(colours, colours) + 1000 * torch.eye(21)
    assert distances.min() > 70
    assert len({draw.class_colour(i) for i in range(100)}) == 100


def test_a_target_is_drawn_whole():
    boxes = torch.tensor([[10.0, 40.0, 60.0, 90.0], [80.0, 40.0, 150.0, 110.0]])
    target = dict(boxes=boxes, labels=torch.tensor([1, 3]))
    image = grey()
    picture = draw.draw_detections(image, target, CLASSES)
    assert has_colour(picture, draw.class_colour(0))
    assert has_colour(picture, draw.class_colour(2))
    assert torch.equal(image, grey())  # not changed
    assert torch.equal(picture[:, 50:80, 20:50], image[:, 50:80, 20:50])  # names do not hide objects
    half = draw.draw_detections(image, dict(target, scores=torch.tensor([0.9, 0.4])), CLASSES)
    assert has_colour(half, draw.class_colour(0))
    assert not has_colour(half, draw.class_colour(2))
    nothing = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0))
    assert torch.equal(draw.draw_detections(image, nothing, CLASSES), image)


def test_overlapping_masks():
    boxes = torch.tensor([[10.0, 40.0, 100.0, 100.0], [50.0, 40.0, 150.0, 100.0]])
    masks = torch.zeros(2, 1, 120, 160)
    masks[0, 0, 40:100, 10:100] = masks[1, 0, 40:100, 50:150] = 0.9
    prediction = dict(boxes=boxes, labels=torch.tensor([1, 2]), scores=torch.tensor([0.9, 0.8]), masks=masks)
    picture = draw.draw_detections(grey(), prediction, CLASSES)
    for x, label in ((30, 1), (75, 1), (130, 2)):  # where both are, the better one is shown
        expected = [(128 + c) / 2 for c in draw.class_colour(label - 1)]
        assert picture[:, 70, x].tolist() == pytest.approx(expected, abs=1)
    target = dict(boxes=boxes, labels=torch.tensor([1, 2]), masks=(masks[:, 0] > 0.5).to(torch.uint8))
    assert torch.equal(draw.draw_detections(grey(), target, CLASSES)[:, 70, 75], picture[:, 70, 75])


def test_sizes_of_lines_and_names():
    heights = []
    for side in (320, 4000):
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * side
        picture = draw.draw_detections(grey(side, side), dict(boxes=box, labels=torch.tensor([1])), CLASSES)
        rows = (picture != 128).any(dim=0).any(dim=1).nonzero()
        heights.append(side // 4 - int(rows[0]))  # of the name, which is above the box
        columns = (picture[:, side // 2] != 128).any(dim=0).sum()
        assert columns >= 2 * side / 400
    assert 11 <= heights[0] < 25
    assert 100 < heights[1] < 250


@pytest.mark.parametrize('size', [(3, 4), (11, 400), (400, 11)])
def test_tiny_and_narrow_pictures(size):
    height, width = size
    target = dict(boxes=torch.tensor([[0.0, 0.0, width, height]]), labels=torch.tensor([1]))
    assert draw.draw_detections(grey(*size), target, ['a name\nof 2 lines' * 9]).shape == (3, *size)
    picture = draw.draw_class_map(grey(*size), torch.zeros(size, dtype=torch.int64), ['a name' * 30])
    assert picture.shape[2] == width
    assert picture.shape[1] > height


def test_a_class_map_and_its_legend():
    class_map = torch.zeros(120, 160, dtype=torch.int64)
    class_map[60:, :80], class_map[60:, 80:] = 2, 255
    image = grey()
    picture = draw.draw_class_map(image, class_map, AREAS, ignore_index=255)
    assert picture.shape[1] > 120
    assert torch.equal(picture[:, 60:120, 80:], image[:, 60:, 80:])
    for index, (y, x) in ((0, (10, 10)), (2, (90, 10))):
        blended = picture[:, y, x]
        assert blended.tolist() == pytest.approx([(128 + c) / 2 for c in draw.class_colour(index)], abs=1)
        assert has_colour(picture[:, 120:], [round((128 + c) / 2) for c in draw.class_colour(index)])
    assert not has_colour(picture[:, 120:], [round((128 + c) / 2) for c in draw.class_colour(1)])  # does not occur
    with pytest.raises(ValueError, match='the id 255; those of 3 classes are 0 to 2'):
        draw.draw_class_map(image, class_map, AREAS)


def test_a_sheet_of_samples(tmp_path):
    sheet = draw.draw_samples([('a.jpg', grey(480, 640), grey(480, 640)), ('b.jpg', grey(50, 60), grey(50, 60))])
    assert 2 * draw.TILE < sheet.shape[2] < 2 * draw.TILE + 40
    assert int((sheet == 128).all(dim=0).sum()) >= 2 * (320 * 240 + 50 * 60)
    assert draw.draw_samples([]).shape[0] == 3
    for name in ('sheet.png', 'sheet.jpg'):
        draw.write_picture(sheet, tmp_path / name)
        assert read(tmp_path / name).shape == sheet.shape
    assert files(tmp_path) == ['sheet.jpg', 'sheet.png']
    with pytest.raises(ValueError, match=r'must end in \.png or \.jpg'):
        draw.write_picture(sheet, tmp_path / 'sheet.gif')
