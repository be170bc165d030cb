"""Model folders whose config.json or weights are broken or hostile: refused in one line, never random, never online."""

import io
import json
import os
import random
import socket
from contextlib import redirect_stderr, redirect_stdout

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from timm_attn.cli import main

NAMES = ['apple', 'birch', 'clover']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is right, and a photograph; nothing may connect anywhere."""
    model = timm.create_model('csa_resnet20_cifar', num_classes=3)
    timm.models.save_for_hf(model, tmp_path / 'mine', model_config=dict(label_names=NAMES), safe_serialization=True)
    Image.linear_gradient('L').resize((40, 30)).convert('RGB').save(tmp_path / 'photo.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)

    def refuse(*args, **kwargs):
        raise AssertionError('NETWORK')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(os, 'system', refuse)
    return tmp_path / 'mine'


def predict(name='local-dir:mine', *more):
    """Exit status, JSON or None, and the line of the error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(['predict', 'photo.png', '--model', name, '--json', *more])
    lines = [line for line in err.getvalue().splitlines() if line.startswith('error: ')]
    assert 'Traceback' not in err.getvalue()
    assert 'NETWORK' not in err.getvalue()
    if status == 2:
        assert out.getvalue() == ''
        assert len(lines) == 1
        assert len(lines[0]) < 700
        assert not lines[0].endswith(('()', ': ', 'index out of range'))
        return status, None, lines[0]
    assert status == 0
    assert not lines
    return status, json.loads(out.getvalue()), ''


def is_right(data, truth):
    """Whether a prediction is that of the folder's weights, whatever its labels."""
    found = {c['index']: c['probability'] for c in data['predictions'][0]['classes']}
    expected = {c['index']: c['probability'] for c in truth['predictions'][0]['classes']}
    return found.keys() == expected.keys() and all(abs(found[i] - expected[i]) < 1e-5 for i in found)


def changed(config, path, value):
    """Copy of a config with one entry changed, or removed if the value is Ellipsis."""
    config = json.loads(json.dumps(config))
    *parents, key = path.split('/')
    inner = config
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value is ...:
        inner.pop(key, None)
    else:
        inner[key] = value
    return config


P = 'pretrained_cfg/'
WRONG = {
    'architecture': [..., None, 3, [], {}, '', 'nothing', 'csa_resnt20_cifar', 'x' * 10_000, '../x', 'hf-hub:a/b'],
    'num_classes': [None, 7, 2, 0, -1, '3', 3.5, True, [3], {}, 10**12],
    'label_names': [['a'], ['a'] * 4, 'abc', 3, [1, 2, 3], {'a': 'b'}, {'0': 'a'}, [None] * 3, [['a']] * 3],
    'label_descriptions': [['a'], 'a', 3, {'apple': 3}, {'apple': None}, {'apple': ['x']}],
    'pretrained_cfg': [None, 3, 'x', [], {'unknown_key': 1}],
    'model_args': [None, 3, 'x', []],
    P + 'input_size': [3, 'x', [], [3], [3, 32], [3, 32, 32, 32], [3, 0, 0], [3, -32, 32], [3, 10**6, 10**6], ['3'] * 3,
                       [3, 32.5, 32.5], {'a': 1}, [3, True, True]],
    P + 'mean': ['0.5', 3, [], [0.5, 0.5], ['a'] * 3, [None] * 3, [float('nan')] * 3, [float('inf')] * 3, {'a': 1},
                 [10**400] * 3],
    P + 'std': ['0.5', 3, [], [0.5, 0.5], [0, 0, 0], [-1, 1, 1], [float('nan')] * 3, [float('inf')] * 3, [True] * 3],
    P + 'interpolation': ['unknown', 3, [], {}, True, '', 'random'],
    P + 'crop_pct': [1e-9, 0, -1, 'x', [], float('nan'), float('inf'), 1e9, True],
    P + 'crop_mode': ['unknown', 3, [], {}, ''],
    'model_args/checkpoint_path': ['/etc/passwd', 'http://127.0.0.1/x', None],
    'model_args/pretrained_cfg': ['cifar10', {'url': 'http://127.0.0.1/x'}],
    'model_args/pretrained_cfg_overlay': [{'url': 'http://127.0.0.1/x', 'source': None}, {'file': '/etc/passwd'}],
    'model_args/pretrained': [True, False],
    'model_args/pretrained_strict': [False],
    'model_args/pretrained_filter_fn': ['x'],
    'model_args/scriptable': [True],
    'model_args/features_only': [True],
    'model_args/cache_dir': ['/tmp'],
    'model_args/device': ['meta'],
    'model_args/num_classes': [7, 0, '3', -1],
    'model_args/in_chans': [1, 4, 'x', 10**12],
    'model_args/unknown': [1, 'x'],
    'model_args/model_name': ['resnet18'],
    'model_args/variant': ['resnet18'],
    'model_args/model_cls': ['os.system'],
    'model_args/trainable': ['x', 3],
    'model_args/global_pool': ['unknown', 3],
}  # fmt: skip

STILL_RIGHT = {
    P + 'url': ['http://127.0.0.1/x.pth'],
    P + 'hf_hub_id': ['timm/resnet18.a1_in1k'],
    P + 'hf_hub_filename': ['other.bin'],
    P + 'source': ['hf-hub', 'url', None],
    P + 'file': ['/etc/passwd', '/dev/zero', None],
    P + 'state_dict': [{'a': 1}, None],
    P + 'custom_load': [True, 'hf', False],
    P + 'license': [None, 3, 'x' * 10_000],
    P + 'num_classes': [7],  # the outer one counts
    P + 'input_size': [[1, 32, 32], [4, 32, 32]],  # timm takes the channels of model_args
    P + 'crop_pct': [None],
    P + 'mean': [None],
    'label_descriptions': [{}, {'other': 'x'}, None],
    'unknown': [None, 3, {'deep': [[[]]]}],
    'model_args': [..., {}],
}


def test_one_wrong_entry(attack, folder):
    config = json.loads((folder / 'config.json').read_text())
    _, truth, _ = predict()
    for path, values in WRONG.items():
        for value in values:
            with attack.case(f'{path}: {str(value)[:50]}'):
                (folder / 'config.json').write_text(json.dumps(changed(config, path, value)))
                status, data, message = predict()
                assert status == 2, data
                assert 'mine' in message, message
    for path, values in STILL_RIGHT.items():
        for value in values:
            with attack.case(f'{path}: {str(value)[:50]}, which does not matter'):
                (folder / 'config.json').write_text(json.dumps(changed(config, path, value)))
                status, data, message = predict()
                assert status == 0, message
                if path not in (P + 'crop_pct', P + 'mean'):
                    assert is_right(data, truth)
    with attack.case('labels in an object, by index'):
        labels = {'0': 'apple', '2': 'clover', '1': 'birch'}
        (folder / 'config.json').write_text(json.dumps(changed(config, 'label_names', labels)))
        _, data, _ = predict()
        assert data['predictions'] == truth['predictions']


TEXTS = {
    'empty': b'',
    'no JSON': b'architecture: csa_resnet50',
    'cut': b'{"architecture": "csa_res',
    **{text: text.encode() for text in ('[]', 'null', '3', '"x"', 'true', 'NaN', '{}')},
    'nested lists': b'[' * 200_000,
    'nested objects': b'{"a":' * 200_000,
    'nested and closed': b'[' * 50_000 + b']' * 50_000,
    'UTF-16': '{}'.encode('utf-16'),
    'bytes': bytes(range(256)),
    'huge number': b'{"num_classes": ' + b'9' * 10_000 + b'}',
    'byte order mark': '\ufeff{}'.encode(),
    'surrogate': b'{"architecture": "\\ud800"}',
    'escape': b'{"architecture": "\\u001b[31mx\\nerror: y"}',
}


def test_texts_that_are_no_config(attack, folder):
    for name, text in TEXTS.items():
        with attack.case(name):
            (folder / 'config.json').write_bytes(text)
            status, _, message = predict()
            assert status == 2
            assert '\x1b' not in message
    with attack.case('100 MB'):
        with open(folder / 'config.json', 'wb') as file:
            file.truncate(100 * 2**20)
        assert 'larger' in predict()[2]
    (folder / 'config.json').unlink()
    for name, make in dict(absent=lambda p: None, folder=os.mkdir, pipe=os.mkfifo).items():
        with attack.case(f'config.json: {name}'):
            make(folder / 'config.json')
            assert 'config.json' in predict()[2]
        if name == 'folder':
            (folder / 'config.json').rmdir()


def mutate(rng, value):
    """Change something somewhere in a config."""
    junk = [None, True, 0, -1, 1e308, 10**30, '', 'x', '\x1b[2J', [], {}, [[]], [None], 3, [3, 32, 32], 'resnet18']
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        action = rng.random()
        if action < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.25:
            return {
                **value,
                rng.choice(['num_classes', 'file', 'std', 'x', 'in_chans', 'checkpoint_path']): rng.choice(junk),
            }
        return {**value, key: mutate(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], *([] if rng.random() < 0.3 else [mutate(rng, value[i])]), *value[i + 1 :]]
    if isinstance(value, int | float) and rng.random() < 0.5:
        return value * rng.choice([-1, 0, 1.5, 2, 1000])
    return rng.choice(junk)


def test_seeded_mutations(attack, folder):
    config = json.loads((folder / 'config.json').read_text())
    _, truth, _ = predict()
    rng = random.Random(0)
    prepared = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    for i in range(400):
        mutant = config
        for _ in range(rng.choice((1, 1, 2, 4))):
            mutant = mutate(rng, mutant) if isinstance(mutant, dict) else mutant
        text = json.dumps(mutant)
        with attack.case(f'{i}: {text[:600]}'):
            (folder / 'config.json').write_text(text)
            status, data, _ = predict()
            if status == 0:  # then it is the network in the file
                same = all(mutant.get('pretrained_cfg', {}).get(k) == config['pretrained_cfg'][k] for k in prepared)
                again = predict()[1]
                assert again == data
                assert is_right(data, truth) or not same


def test_weights(attack, folder):
    good = load_file(folder / 'model.safetensors')
    head = next(key for key, value in good.items() if value.shape[:1] == (3,) and value.ndim == 2)
    raw = (folder / 'model.safetensors').read_bytes()

    def write(tensors):
        save_file(tensors, folder / 'model.safetensors')

    wrong = {
        'no classifier': {k: v for k, v in good.items() if k != head},
        'another number of classes': {**good, head: torch.zeros(7, 64)},
        'a transposed classifier': {**good, head: good[head].T.contiguous()},
        'another family': timm.create_model('resnet18', num_classes=3).state_dict(),
        'nothing': {},
        'a foreign tensor': {**good, 'extra': torch.zeros(3)},
    }
    for key in (head, 'conv_stem.weight', next(k for k in good if k.endswith('running_var'))):
        for value in (float('nan'), float('inf'), float('-inf')):
            bad = good[key].clone()
            bad.view(-1)[0] = value
            wrong[f'{value} in {key}'] = {**good, key: bad}
    for name, tensors in wrong.items():
        with attack.case(name):
            write(tensors)
            status, data, message = predict()
            assert status == 2, data
            assert 'finite' in message or ' in ' not in name, message
    for tenth in range(10):
        with attack.case(f'{tenth}/10 of the file'):
            (folder / 'model.safetensors').write_bytes(raw[: len(raw) * tenth // 10])
            assert predict()[0] == 2
    with attack.case('a pipe'):
        (folder / 'model.safetensors').unlink()
        os.mkfifo(folder / 'model.safetensors')
        assert 'pipe' in predict()[2]
    (folder / 'model.safetensors').unlink()
    with attack.case('no weights'):
        assert predict()[0] == 2
    for name in ('', 'absent', 'photo.png', '.', 'mine/config.json'):
        with attack.case(f'local-dir:{name}'):
            assert predict(f'local-dir:{name}')[0] == 2
    os.mkfifo('pipe.pth')
    for name in ('pipe.pth', '.', 'absent', 'photo.png', '/dev/null', '/dev/zero'):
        with attack.case(f'--checkpoint {name}'):
            assert name in predict('csa_resnet20_cifar', '--checkpoint', name)[2]
    with attack.case('--checkpoint with NaN'):
        state = timm.create_model('csa_resnet20_cifar', pretrained=True).state_dict()
        state['conv_stem.weight'].view(-1)[5] = float('nan')
        torch.save(state, 'nan.pth')
        assert 'conv_stem.weight' in predict('csa_resnet20_cifar', '--checkpoint', 'nan.pth')[2]
