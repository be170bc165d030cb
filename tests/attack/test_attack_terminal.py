"""Text that comes from others (labels, names of files, arguments): safe on a terminal, exact in files of data."""

import csv
import io
import json
import os
import unicodedata
from contextlib import redirect_stderr, redirect_stdout

import pytest
import timm
from PIL import Image

from timm_attn.cli import main
from timm_attn.cli.common import printable

HOSTILE = {
    'colour': '\x1b[31mred\x1b[0m',
    'title of the window': '\x1b]0;owned\x07',
    'clear the screen': '\x1b[2J\x1b[H',
    'C1 control': '\x9b31mred',
    'line': 'cat\n  99.00 %  dog',
    'carriage return': 'cat\rdog',
    'line separator': 'cat\u2028dog\u2029',
    'next line': 'cat\x85dog',
    'vertical tab': 'cat\x0bdog\x0c',
    'backspace': 'cat\b\b\bdog',
    'delete': 'cat\x7f',
    'null': 'cat\0dog',
    'tab': 'cat\tdog',
    'bell': '\a' * 100,
    'right to left': '\u202egnp.tac\u202c',
    'isolates': '\u2066cat\u2069',
    'marks': '\u200ecat\u200f\u061c',
    'byte order mark': '\ufeffcat',
    'zero width space': 'c\u200bat',
    'tag characters': 'cat\U000e0041\U000e007f',
    'private use': 'cat\ue000',
    'surrogate': 'cat\udcff',
    'long': 'c' * 1_000_000,
    'long and hostile': '\x1b[31m' * 100_000,
    'CSV': 'cat,"dog"\n=cmd()',
    'empty': '',
    'percent': '%s %d {0} $PATH',
}
HARMLESS = ('cat', 'größer', '表', '猫', 'кот', 'قطة', 'פיל', 'नमस्ते', 'می\u200cخو', '👩\u200d💻', 'e\u0301', '¿?')


def is_safe(text):
    return all(unicodedata.category(c) not in ('Cc', 'Cs', 'Zl', 'Zp') and not is_format(c) for c in text)


def is_format(c):
    return unicodedata.category(c) == 'Cf' and c not in '\u200c\u200d'


csv.field_size_limit(2**24)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient('L').resize((40, 30)).convert('RGB').save('photo.png')
    model = timm.create_model('csa_resnet20_cifar', num_classes=3)
    timm.models.save_for_hf(model, 'mine', model_config=dict(label_names=['a', 'b', 'c']), safe_serialization=True)
    return tmp_path


class Screen(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def run(*args, out=None):
    out, err = out or Screen(), Screen()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(list(args))
        except SystemExit as e:
            status = e.code
    for line in err.getvalue().replace('\r', '\n').splitlines():
        assert is_safe(line) or 'image/s' in line or not line.strip(), ascii(line)  # of a progress bar
        assert len(line) < 3000
    return status, out.getvalue(), err.getvalue()


def test_labels(attack, folder):
    config = json.loads((folder / 'mine' / 'config.json').read_text())
    for name, text in HOSTILE.items():
        config['label_names'] = [text, 'b', 'c']
        (folder / 'mine' / 'config.json').write_text(json.dumps(config))
        predict = ('predict', 'photo.png', '--model', 'local-dir:mine')
        with attack.case(f'{name}: text'):
            status, out, _ = run(*predict)
            assert status == 0
            assert len(out.splitlines()) == 4
            assert len(out) < 2500
            assert all(map(is_safe, out.splitlines()))
        with attack.case(f'{name}: JSON'):
            status, out, _ = run(*predict, '--json')
            assert all(c == '\n' or 32 <= ord(c) < 128 for c in out)
            assert text in {c['label'] for c in json.loads(out)['predictions'][0]['classes']}
        with attack.case(f'{name}: CSV on a terminal'):
            status, out, _ = run(*predict, '--csv')
            assert all(map(is_safe, out.splitlines()))
            assert len(out.splitlines()) == 4
        with attack.case(f'{name}: CSV in a pipe'):
            status, out, _ = run(*predict, '--csv', out=io.StringIO(newline=''))
            assert text in {row['label'] for row in csv.DictReader(io.StringIO(out, newline=''))}
        for form in ('csv', 'json'):
            with attack.case(f'{name}: {form} file'):
                assert run(*predict, '-o', f'out.{form}')[0] == 0
                with open(f'out.{form}', encoding='utf-8', errors='surrogateescape', newline='') as file:
                    if form == 'csv':
                        labels = {row['label'] for row in csv.DictReader(file)}
                    else:
                        labels = {c['label'] for c in json.load(file)['predictions'][0]['classes']}
                assert text in labels
        with attack.case(f'{name}: grid'):
            assert run(*predict, '--grid', 'grid.png')[0] == 0
            assert Image.open('grid.png').size[0] < 1000


def names():
    for name, text in HOSTILE.items():
        if text and '\0' not in text and '/' not in text and len(text) < 200:
            yield name, text


def test_names_of_files(attack, folder):
    model = ('--model', 'csa_resnet20_cifar')
    for name, text in names():
        file = f'{text}.png'
        os.symlink('photo.png', file)
        with attack.case(f'{name}: text'):
            status, out, _ = run('predict', file, *model, '--topk', '1')
            assert status == 0
            assert len(out.splitlines()) == 2
            assert all(map(is_safe, out.splitlines()))
        with attack.case(f'{name}: JSON'):
            assert json.loads(run('predict', file, *model, '--json')[1])['predictions'][0]['image'] == file
        with attack.case(f'{name}: written'):
            assert run('predict', file, *model, '-o', f'{text}.csv')[0] == 0
            with open(f'{text}.csv', encoding='utf-8', errors='surrogateescape', newline='') as out:
                assert next(csv.DictReader(out))['image'] == file
        os.unlink(file)
        for args in (
            ('predict', file, *model),
            ('predict', 'photo.png', '--model', text),
            ('predict', 'photo.png', '--model', f'local-dir:{text}'),
            ('predict', 'photo.png', *model, '--checkpoint', text),
            ('predict', 'photo.png', *model, '-o', f'absent/{text}.csv'),
            ('predict', 'photo.png', *model, f'--{text}'),
            ('predict', 'photo.png', *model, '--topk', text),
            ('evaluate', text, *model),
            ('evaluate', '.', '--split', text, *model),
            ('list', text),
            ('info', text),
            ('recipe', text),
            ('run', text),
            (text,),
        ):
            with attack.case(f'{name}: {args[0]!r} ... {args[-1]!r}'):
                assert run(*args)[0] == 2
        with attack.case(f'{name}: left out'):
            open(file, 'w').close()
            status, out, err = run('predict', 'photo.png', file, *model, '--topk', '1')
            assert status == 2
            assert 'left out' in err
            os.unlink(file)


def test_harmless_text_stays(attack):
    for text in HARMLESS:
        with attack.case(text):
            assert printable(text) == text
    for name, text in HOSTILE.items():
        with attack.case(name):
            assert is_safe(printable(text))
            assert len(printable(text, 200)) <= 203 * 10


def test_empty_values(attack, folder):
    for option in ('--model', '--checkpoint', '--num-classes', '--topk', '-b', '--device', '-o', '--output', '--grid'):
        for args in ([option, ''], [f'{option}='] if option.startswith('--') else [option, '']):
            with attack.case(f'predict {args}'):
                status, _, err = run('predict', 'photo.png', *args)
                assert status == 2
                assert 'empty' in err
                assert option in err
    for args in (['predict', ''], ['evaluate', ''], ['info', ''], ['list', ''], ['recipe', ''], ['export', '', 'out'],
                 ['export', 'run', ''], ['finetune', '']):  # fmt: skip
        with attack.case(f'{args}'):
            status, _, err = run(*args)
            assert status == 2
            assert 'empty' in err
            assert f'(see timm-attn {args[0]} --help)' in err
