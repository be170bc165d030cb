"""Weight files: none runs code, crashes the process or leaves a model silently random, whatever is in it."""

import collections
import io
import itertools
import json
import logging
import os
import pickle
import pickletools
import random
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save, save_file

from timm_attn.weights import CheckpointError
from timm_attn.weights.convert import explain_unreadable

MODEL = 'csa_resnet20_cifar'
THEIR_ADVICE = ('weights_only', 'safe_globals')


@pytest.fixture(scope='module')
def good():
    torch.manual_seed(1)
    return timm.create_model(MODEL).state_dict()


def load(path, **kwargs):
    return timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)


def chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refusal(read, *args, **kwargs):
    """The error that a reader ends with; pytest's own failure would stop the count of cases."""
    try:
        read(*args, **kwargs)
    except Exception as e:
        return e
    raise AssertionError('it was loaded')


def is_refused(path, **kwargs):
    """It ends in CheckpointError, without advice to load it with its code; timm's own reader refuses it, too."""
    refused = refusal(load, path, **kwargs)
    assert isinstance(refused, CheckpointError), repr(refused)
    for error in chain(refused):
        assert not any(advice in str(error) for advice in THEIR_ADVICE), error
    assert len(str(refused)) < 1500 + len(str(path))
    refused = refusal(timm.create_model, MODEL, checkpoint_path=str(path), **kwargs)
    assert not isinstance(refused, (MemoryError, RecursionError)), repr(refused)


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Builds(Calls):
    """Code that would run when the state is set."""

    def __reduce__(self):
        return collections.OrderedDict, (), None, None, iter([('a', Calls(*self.call))])


def opcodes(module, name, arg):
    """A pickle by hand, protocol 0: GLOBAL and REDUCE."""
    return f'c{module}\n{name}\n(V{arg}\ntR.'.encode()


def stack_global(module, name, arg):
    def text(s):
        return pickle.SHORT_BINUNICODE + bytes([len(s)]) + s.encode()

    return (
        pickle.PROTO + b'\x04' + text(module) + text(name) + pickle.STACK_GLOBAL + text(arg) + pickle.TUPLE1
        + pickle.REDUCE + pickle.STOP
    )  # fmt: skip


def payloads(marker):
    """Objects whose unpickling would leave a file."""
    code = f'open({str(marker)!r}, "w").close()'
    touch = f'touch {marker}'
    yield 'os.system', Calls(os.system, touch)
    yield 'os.popen', Calls(os.popen, touch)
    yield 'eval', Calls(eval, code)
    yield 'exec', Calls(exec, code)
    yield 'open', Calls(open, str(marker), 'w')
    yield 'subprocess', Calls(subprocess.call, ['touch', str(marker)])
    yield 'Popen', Calls(subprocess.Popen, ['touch', str(marker)])
    yield 'mkdir', Calls(os.mkdir, str(marker))
    yield 'shutil', Calls(shutil.copy, sys.executable, str(marker))
    yield 'getattr', Calls(getattr, Calls(__import__, 'os'), 'system')
    yield 'import', Calls(__import__, 'antigravity')
    yield 'torch.save', Calls(torch.save, {}, str(marker))
    yield 'torch.load', Calls(torch.load, str(marker))
    yield 'torch.hub', Calls(torch.hub.load, str(marker), 'x')
    yield 'save_file', Calls(save_file, {}, str(marker))
    yield 'torch.compile', Calls(torch.compile)
    yield 'nn.Module', Calls(torch.nn.Linear, 10**3, 10**3)
    yield 'inner pickle', Calls(pickle.loads, pickle.dumps(Calls(os.system, touch)))
    yield 'in a dict', {'state_dict': {'conv_stem.weight': Calls(eval, code)}}
    yield 'as a key', {'state_dict': torch.zeros(1), 'epoch': [1, (2, Calls(eval, code))]}
    yield 'after the tensors', collections.OrderedDict(a=torch.zeros(2), b=Calls(exec, code))
    yield 'items of a dict', Builds(exec, code)
    yield 'partial', Calls(__import__('functools').partial, os.system, touch)
    yield 'TorchFunction', Calls(torch.overrides.resolve_name, Calls(os.system, touch))
    yield 'rebuild', Calls(torch._utils._rebuild_tensor_v2, Calls(os.system, touch), 0, (1,), (1,), False, {})
    yield 'parameter', Calls(torch._utils._rebuild_parameter, Calls(os.system, touch), False, {})


def by_hand(marker):
    for module, name in (
        ('os', 'system'), ('posix', 'system'), ('nt', 'system'), ('builtins', 'eval'), ('__builtin__', 'eval'),
        ('subprocess', 'getoutput'), ('runpy', 'run_path'), ('timeit', 'timeit'), ('pty', 'spawn'),
        ('code', 'interact'),
        ('torch.serialization', 'os.system'), ('torch', 'os.system'), ('torch._utils', '__builtins__.eval'),
        ('torch.hub', 'os.system'), ('timm', 'create_model'), ('argparse', '_sys.exit'), ('collections', 'sys.exit'),
        ('bdb', 'run'), ('cProfile', 'run'), ('torch.utils.collect_env', 'run'), ('webbrowser', 'open'),
    ):  # fmt: skip
        yield f'{module}.{name}', module, name, f'touch {marker}'


def containers(obj):
    """The formats that torch has written, or reads."""
    yield 'pickle 0', pickle.dumps(obj, 0)
    yield 'pickle 2', pickle.dumps(obj, 2)
    yield 'pickle 5', pickle.dumps(obj, 5)
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(obj, buffer, _use_new_zipfile_serialization=new)
        yield f'torch.save, {"zip" if new else "old"}', buffer.getvalue()
    yield 'torch magic', b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, obj, []))
    yield 'tar', tar_of({'pickle': pickle.dumps(obj, 2), 'storages': pickle.dumps(0), 'tensors': pickle.dumps(0)})
    for part in ('storages', 'tensors'):
        parts = {'pickle': pickle.dumps({}, 2), 'storages': pickle.dumps(0), 'tensors': pickle.dumps(0)}
        yield f'tar, {part}', tar_of({**parts, part: pickle.dumps(obj, 2)})


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.bin', '.safetensors', ''])
def test_code(suffix, attack, tmp_path):
    marker = tmp_path / 'code_was_run'
    path = tmp_path / f'weights{suffix}'
    few = suffix != '.pth'  # the suffix must not matter
    for name, obj in itertools.islice(payloads(marker), 0, None, 9 if few else 1):
        for container, content in containers(obj):
            path.write_bytes(content)
            with attack.case(f'{name} in {container}{suffix}'):
                is_refused(path)
                assert not marker.exists()
            marker.unlink(missing_ok=True)
    for name, module, function, arg in itertools.islice(by_hand(marker), 0, None, 9 if few else 1):
        for content in (opcodes(module, function, arg), stack_global(module, function, arg)):
            for wrapped in (content, zip_of({'a/data.pkl': content, 'a/version': '3\n', 'a/byteorder': 'little'})):
                path.write_bytes(wrapped)
                with attack.case(f'{name} by hand{suffix}'):
                    is_refused(path)
                    assert not marker.exists()
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


def test_archives(attack, good, tmp_path):
    """TorchScript, exported programs, other zip files, bombs."""
    path = tmp_path / 'weights.pth'
    traced = torch.jit.trace(timm.create_model(MODEL, exportable=True).eval(), torch.zeros(1, 3, 32, 32))
    torch.jit.save(traced, str(path))
    contents = {'TorchScript': path.read_bytes()}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    contents['exported program'] = buffer.getvalue()
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer)
    contents['a whole module'] = buffer.getvalue()
    contents['bomb of zeros'] = zip_of({'a/data.pkl': bytes(50_000_000), 'a/version': '3\n'}, zipfile.ZIP_DEFLATED)
    contents['bomb beside'] = zip_of(
        {'a/data.pkl': pickle.dumps({}, 2), 'a/version': '3\n', 'a/data/0': bytes(50_000_000)}, zipfile.ZIP_DEFLATED
    )
    contents['empty zip'] = zip_of({})
    contents['zip of texts'] = zip_of({'readme.txt': 'hello'})
    contents['names that climb'] = zip_of({'../../data.pkl': pickle.dumps({}), '../version': '3'})
    contents['absolute names'] = zip_of({'/tmp/a/data.pkl': pickle.dumps({}), '/tmp/a/version': '3'})
    contents['empty tar'] = tar_of({})
    contents['tar that climbs'] = tar_of({'../escaped': b'x', 'pickle': pickle.dumps({}, 2)})
    contents['deep pickle'] = b'\x80\x02' + b']' * 200_000 + b'.'
    contents['deep tuples'] = b'\x80\x02' + b')' + b'\x85' * 200_000 + b'.'
    contents['billion laughs'] = b'\x80\x02' + b']' + b'q\x00' + b'h\x00h\x00\x86' * 1000 + b'.'
    contents['huge string'] = b'\x80\x02X' + struct.pack('<I', 2**31 - 1) + b'x.'
    contents['huge bytes'] = b'\x80\x04\x8e' + struct.pack('<Q', 2**60) + b'x.'
    contents['huge memo'] = b'\x80\x02Nr' + struct.pack('<I', 2**32 - 1) + b'.'
    contents['huge integer'] = b'\x80\x02\x8b' + struct.pack('<i', 2**31 - 1) + b'x.'
    for name, content in contents.items():
        path.write_bytes(content)
        with attack.case(name):
            is_refused(path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


def huge_tensors():
    """Pickles of tensors that lie about their storage."""

    def tensor(sizes, strides, offset, numel, nbytes):
        class Storage:
            pass

        buffer = io.BytesIO()

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                return ('storage', torch.FloatStorage, '0', 'cpu', numel) if isinstance(obj, Storage) else None

        content = {
            'conv_stem.weight': Calls(torch._utils._rebuild_tensor_v2, Storage(), offset, sizes, strides, False, {})
        }
        Pickler(buffer, 2).dump(content)
        return zip_of({'a/data.pkl': buffer.getvalue(), 'a/version': '3\n', 'a/data/0': bytes(nbytes)})

    yield 'more than there is', tensor((16, 3, 3, 3), (27, 9, 3, 1), 0, 432, 8)
    yield 'sizes beyond the storage', tensor((10**6,), (1,), 0, 2, 8)
    yield 'strides beyond the storage', tensor((16, 3, 3, 3), (10**9, 9, 3, 1), 0, 2, 8)
    yield 'offset beyond the storage', tensor((2,), (1,), 10**12, 2, 8)
    yield 'negative offset', tensor((2,), (1,), -5, 2, 8)
    yield 'negative size', tensor((-2,), (1,), 0, 2, 8)
    yield 'negative stride', tensor((2,), (-1,), 1, 2, 8)
    yield 'negative numel', tensor((2,), (1,), 0, -2, 8)
    yield 'numel of 2**62', tensor((2,), (1,), 0, 2**62, 8)
    yield 'overflowing sizes', tensor((2**40, 2**40), (2**40, 1), 0, 2, 8)


def test_tensors_that_lie(attack, tmp_path):
    path = tmp_path / 'weights.pth'
    for name, content in huge_tensors():
        path.write_bytes(content)
        with attack.case(name):
            is_refused(path)


def with_header(header, data=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def bad_safetensors(good):
    content = save(good)
    (size,) = struct.unpack('<Q', content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    for length in (0, 1, size - 1, size + 1, len(content), 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 10**8 + 1):
        yield f'header of {length}', with_header(json.dumps(header).encode(), data, length)
    key = 'conv_stem.weight'
    entry = header[key]
    start, end = entry['data_offsets']

    def changed(**changes):
        return with_header({**header, key: {**entry, **changes}}, data)

    for offsets in (
        [end, start], [start, start], [start + 4, end], [start, end + 4], [-8, end], [0, 2**63], [0, 2**64],
        [2**64 - 8, 2**64 - 4], [start], [], [start, end, end], 'x', None, {}, [start + 0.5, end], ['0', '4'],
        [0, 4], [len(data), len(data) + end - start],
    ):  # fmt: skip
        yield f'offsets {offsets}', changed(data_offsets=offsets)
    for shape in (
        [16, 3, 3], [-16, 3, 3, 3], [16, 3, 3, -3], [2**32, 2**32], [2**63], [0], [], 'x', None, {}, [16.5, 3, 3, 3],
        [1] * 5000, [16, 3, 3, 4], [2**20, 2**20, 2**20, 2**20],
    ):  # fmt: skip
        yield f'shape {str(shape)[:40]}', changed(shape=shape)
    for dtype in ('F64', 'I8', 'BOOL', 'f32', 'F33', '', None, 4, [], 'F8_E4M3', 'C64', 'object', 'U8' * 1000):
        yield f'dtype {str(dtype)[:20]}', changed(dtype=dtype)
    yield 'no dtype', with_header({**header, key: {'shape': entry['shape'], 'data_offsets': [start, end]}}, data)
    yield 'null entry', with_header({**header, key: None}, data)
    yield 'extra field', with_header({**header, 'extra': {'dtype': 'F32'}}, data)
    yield 'overlap', with_header({**header, key: header['bn1.weight'] | {'shape': [16]}}, data)
    yield 'twice', with_header(json.dumps(header).encode()[:-1] + b',"conv_stem.weight":' + b'{}' + b'}', data)
    for text in (b'', b'{', b'[]', b'null', b'"x"', b'{}', b'{"a":1}', b'\xff\xfe', b'[' * 100_000, b'{"a":' * 100_000):
        yield f'header {text[:12]!r}', with_header(text)
        yield f'header {text[:12]!r} before the data', with_header(text, data)
    for metadata in (1, [], {'a': 1}, 'x', {'a': {'b': 'c'}}):
        yield f'metadata {metadata}', with_header({**header, '__metadata__': metadata}, data)
    yield 'trailing bytes', content + b'x' * 100
    yield 'no data', content[: 8 + size]


def test_safetensors(attack, good, tmp_path):
    path = tmp_path / 'weights.safetensors'
    for name, content in bad_safetensors(good):
        path.write_bytes(content)
        with attack.case(name):
            is_refused(path)


def formats(good):
    yield '.safetensors', save(good)
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({'state_dict': good}, buffer, _use_new_zipfile_serialization=new)
        yield '.pth', buffer.getvalue()


def is_refused_or_whole(path, good):
    """A damaged file is refused, or its damage is in the values alone: then every value comes from the file."""
    try:
        model = load(path)
    except CheckpointError as e:
        assert 'weights_only' not in str(e)  # noqa: PT017
        return
    fresh = timm.create_model(MODEL).state_dict()
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
        assert value.numel() < 2 or not torch.equal(value, fresh[key]) or torch.equal(value, good[key]), key


def test_damage(attack, good, tmp_path):
    """Truncated at every twentieth, and bytes that are changed, removed or repeated anywhere."""
    rng = random.Random(0)
    for number, (suffix, content) in enumerate(formats(good)):
        path = tmp_path / f'weights{number}{suffix}'
        for part in range(20):
            path.write_bytes(content[: len(content) * part // 20])
            with attack.case(f'{suffix} cut at {part}/20'):
                is_refused(path)
        for cut in (1, 2, 7, 8, 9, 100):
            path.write_bytes(content[:-cut])
            with attack.case(f'{suffix} without the last {cut}'):
                is_refused(path)
        for i in range(40):
            # the structure is at the start and, in a zip, at the end
            at = rng.choice([rng.randrange(2000), rng.randrange(len(content)), len(content) - 1 - rng.randrange(2000)])
            size = rng.choice([1, 4, 64])
            new = rng.choice([rng.randbytes(size), bytes(size), b'\xff' * size, b'', content[at : at + size] * 2])
            path.write_bytes(content[:at] + new + content[at + size :])
            with attack.case(f'{suffix} damaged, {i} at {at}'):
                is_refused_or_whole(path, good)


def test_pickles_at_random(attack, good, tmp_path):
    """Opcodes at random, and real pickles with opcodes changed: refused, without a crash and without code."""
    rng = random.Random(1)
    path = tmp_path / 'weights.pth'
    codes = [op.code.encode('latin-1') for op in pickletools.opcodes]
    buffer = io.BytesIO()
    torch.save(dict(list(good.items())[:2]), buffer)
    with zipfile.ZipFile(buffer) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (pkl,) = (name for name in files if name.endswith('data.pkl'))
    for i in range(150):
        if i % 3:
            content = bytearray(files[pkl])
            for _ in range(rng.choice([1, 3, 10])):
                content[rng.randrange(len(content))] = rng.choice(codes)[0]
        else:
            content = b'\x80\x02' + b''.join(
                rng.choice(codes) + rng.randbytes(rng.choice([0, 0, 1, 4])) for _ in range(40)
            )
        path.write_bytes(zip_of({**files, pkl: bytes(content)}))
        with attack.case(f'random pickle {i}'):
            assert isinstance(refusal(load, path), CheckpointError)


def odd_state_dicts(good):
    first = 'conv_stem.weight'
    for value in (float('nan'), float('inf'), -float('inf')):
        yield f'all {value}', {k: torch.full_like(v, value) if v.is_floating_point() else v for k, v in good.items()}
        for key in ('bn1.running_var', 'classifier.weight', first):
            bad = good[key].clone()
            bad.view(-1)[3] = value
            yield f'one {value} in {key}', {**good, key: bad}
    yield (
        'transposed',
        {k: v.transpose(0, -1).contiguous() for k, v in good.items() if v.ndim}
        | {k: v for k, v in good.items() if not v.ndim},
    )
    for key in (first, 'classifier.weight', 'stages.1.0.conv1.weight', 'bn1.running_mean'):
        yield f'without {key}', {k: v for k, v in good.items() if k != key}
        yield f'{key} of one number', {**good, key: torch.tensor(1.0)}
        yield f'{key} empty', {**good, key: torch.zeros(0)}
        if key != first:  # a stem may have other channels, but it must be one
            yield f'{key} with one more axis', {**good, key: good[key][None]}
        yield f'{key} of another size', {**good, key: torch.zeros(*(n + 1 for n in good[key].shape))}
    yield 'extra', {**good, 'extra': torch.zeros(1)}
    yield 'unknown prefix', {f'net.{k}': v for k, v in good.items()}
    yield 'upper case', {k.upper(): v for k, v in good.items()}
    yield 'half of it', dict(list(good.items())[::2])
    yield 'another model', timm.create_model('csa_resnet20_cifar', num_classes=7).state_dict()
    yield 'empty', {}


def test_state_dicts_that_do_not_fit(attack, good, tmp_path):
    for name, state_dict in odd_state_dicts(good):
        save_file(state_dict, tmp_path / 'w.safetensors')
        torch.save(dict(state_dict=state_dict), tmp_path / 'w.pth')
        for path in (tmp_path / 'w.safetensors', tmp_path / 'w.pth'):
            with attack.case(f'{name}{path.suffix}'):
                assert isinstance(refusal(load, path), CheckpointError)
        if 'nan' in name or 'inf' in name:
            with attack.case(f'{name}, as it is'):
                assert not all(v.isfinite().all() for v in load(path, pretrained_strict=False).state_dict().values())


def test_what_holds_no_state_dict(attack, good, tmp_path):
    path = tmp_path / 'w.pth'
    some = dict(list(good.items())[:3])
    for i, content in enumerate(
        (
            [], None, 3, 'text', b'bytes', torch.zeros(3), [good], (good,), {'state_dict': None}, {'state_dict': []},
            {'state_dict': torch.zeros(2)}, {'model': {}}, {1: torch.zeros(1)}, {None: 1}, {'state_dict': {1: 2}},
            {'state_dict': {('a', 'b'): torch.zeros(1)}}, {**good, 'conv_stem.weight': 'text'},
            {**good, 'conv_stem.weight': None}, {**good, 'conv_stem.weight': good},
            {**good, 'classifier.bias': [1.0] * 10},
            {k: v.tolist() for k, v in some.items()}, {'': torch.zeros(1)},
            {'a' * 100_000: torch.zeros(1)}, {f'k{i}': torch.zeros(1) for i in range(20_000)},
            {**good, 'conv_stem.weight': good['conv_stem.weight'].to_sparse()},
            {**good, 'classifier.weight': good['classifier.weight'].to_sparse()},
            {**good, 'classifier.weight': good['classifier.weight'].to('meta')},
            {**good, 'classifier.weight': torch.quantize_per_tensor(good['classifier.weight'], 0.1, 0, torch.qint8)},
            {**good, 'module.': torch.zeros(1)},
        )
    ):  # fmt: skip
        torch.save(content, path)
        with attack.case(f'{i}: {type(content).__name__}'):
            is_refused(path)


def test_numbers_of_other_types(attack, good, tmp_path):
    """As weights that are fetched; ``load_state_dict`` itself converts them, as torch does."""
    for dtype in (torch.complex64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.int64):
        torch.save({**good, 'classifier.weight': good['classifier.weight'].to(dtype)}, tmp_path / 'w.pth')
        with attack.case(str(dtype)):
            assert isinstance(refusal(load, tmp_path / 'w.pth'), CheckpointError)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in good.items()}
        torch.save(values, tmp_path / 'w.pth')
        with attack.case(str(dtype)):
            assert all(torch.equal(v, values[k].to(v.dtype)) for k, v in load(tmp_path / 'w.pth').state_dict().items())


def test_paths(attack, tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'dangling').symlink_to('nowhere')
    os.mkfifo(tmp_path / 'pipe.pth')
    (tmp_path / 'device.pth').symlink_to('/dev/zero')
    for name, content in (
        ('empty.pth', b''), ('empty.safetensors', b''), ('zero.pth', b'\0'), ('text.pth', b'hello world\n'),
        ('html.pth', b'<!doctype html><html>404</html>'), ('html.safetensors', b'<!doctype html><html>404</html>'),
        ('zeros.pth', bytes(10_000)), ('zeros.safetensors', bytes(10_000)), ('json.pth', b'{"a": 1}'),
        ('pointer.safetensors', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'),
        ('image.pth', b'\x89PNG\r\n\x1a\n' + bytes(100)), ('gz.pth', b'\x1f\x8b\x08' + bytes(50)),
        ('noise.pth', random.Random(2).randbytes(5000)), ('noise.bin', random.Random(3).randbytes(5000)),
        ('a b\n\x1b[31m.pth', b'x'), ('ü😀.safetensors', b'x'), ('numpy.npz', zip_of({'a.npy': b'x'})),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    for path in sorted(tmp_path.iterdir()):
        with attack.case(repr(path.name)):
            is_refused(path)
    for name in ('absent.pth', 'folder/absent.safetensors', 'text.pth/inside.pth', 'a' * 300, 'nul\0byte'):
        with attack.case(name[:20]):
            is_refused(tmp_path / name)
        with attack.case(f'{name[:20]}, explained'):
            assert isinstance(refusal(explain_unreadable, str(tmp_path / name)), CheckpointError)


def test_what_should_load(attack, good, tmp_path, caplog):
    """Every honest wrapping and format loads all values."""
    wrappings = {
        'plain': good, 'state_dict': {'state_dict': good, 'epoch': 3}, 'model': {'model': good},
        'ddp': {f'module.{k}': v for k, v in good.items()}, 'compiled': {f'_orig_mod.{k}': v for k, v in good.items()},
        'ema': {'state_dict_ema': good, 'state_dict': {k: torch.zeros_like(v) for k, v in good.items()}},
        'double': {k: v.double() if v.is_floating_point() else v for k, v in good.items()},
    }  # fmt: skip
    for name, content in wrappings.items():
        for new in (True, False):
            torch.save(content, tmp_path / 'w.pth', _use_new_zipfile_serialization=new)
            for how in ('overlay', 'checkpoint_path'):
                with attack.case(f'{name}, {how}'), caplog.at_level(logging.WARNING):
                    path = str(tmp_path / 'w.pth')
                    model = load(path) if how == 'overlay' else timm.create_model(MODEL, checkpoint_path=path)
                    assert all(torch.equal(v, good[k]) for k, v in model.state_dict().items())


def odd_folders(marker):
    """Entries of a config.json that ask for something else than the file beside it."""
    elsewhere = dict(hf_hub_id='evil/one', url='http://127.0.0.1:9/w.pth', file='/etc/passwd', source='url')
    for key, value in elsewhere.items():
        yield f'cfg {key}', dict(pretrained_cfg={key: value})
        yield f'top {key}', {'pretrained_cfg': {}, key: value}
        yield f'argument {key}', dict(pretrained_cfg={}, model_args={key: value})
    yield 'cfg all', dict(pretrained_cfg=elsewhere)
    yield 'source hf-hub', dict(pretrained_cfg={**elsewhere, 'source': 'hf-hub', 'hf_hub_filename': '../../x'})
    for custom in (True, 'hf', 'evil.module', 1):
        yield f'custom_load {custom}', dict(pretrained_cfg={**elsewhere, 'custom_load': custom})
    for key, value in (
        ('pretrained_cfg_overlay', elsewhere), ('checkpoint_path', '/etc/passwd'), ('pretrained', True),
        ('pretrained_filter_fn', 'os.system'), ('block', 'os.system'), ('act_layer', 'os.system'),
        ('norm_layer', f'__import__("os").system("touch {marker}")'), ('cache_dir', str(marker)), ('device', 'x'),
        ('weights_only', False), ('trust_remote_code', True), ('num_classes', '10'), ('in_chans', -1),
        ('num_classes', 10**15), ('drop_rate', 'x'), ('trainable', 'x'),
    ):  # fmt: skip
        yield f'argument {key} {str(value)[:20]}', dict(pretrained_cfg={}, model_args={key: value})
    yield 'remote code', dict(pretrained_cfg={}, auto_map={'AutoModel': 'code.Model'}, trust_remote_code=True)
    for arch in (
        'os.system',
        '../../x',
        'csa_resnet20_cifar.nonsense',
        'hf-hub:evil/one',
        '',
        'local-dir:.',
        'a' * 9999,
    ):
        yield f'architecture {arch[:20]}', dict(architecture=arch, pretrained_cfg={})


def test_folders(attack, good, tmp_path, monkeypatch):
    """``local-dir:`` asks no network and runs no code, whatever its config.json says."""
    asked = []
    monkeypatch.setattr(socket.socket, 'connect', lambda *args: asked.append(args))
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: asked.append(args) or [])
    marker = tmp_path / 'code_was_run'
    folder = tmp_path / 'folder'
    folder.mkdir()
    save_file(good, folder / 'model.safetensors')
    (folder / 'code.py').write_text(f'open({str(marker)!r}, "w")')
    (folder / '__init__.py').write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.chdir(folder)
    for name, changes in odd_folders(marker):
        config = {'architecture': MODEL, 'num_classes': 10, **changes}
        (folder / 'config.json').write_text(json.dumps(config))
        with attack.case(name):
            try:
                model = timm.create_model(f'local-dir:{folder}', pretrained=True)
            except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError):
                model = None  # a clear error is for the command line; here it counts that nothing happened
            assert not asked
            assert not marker.exists()
            if model is not None:
                assert all(torch.equal(v, good[k]) for k, v in model.state_dict().items())
        asked.clear()
    (folder / 'config.json').write_text(json.dumps({'architecture': MODEL, 'pretrained_cfg': {'num_classes': 10}}))
    for name, obj in itertools.islice(payloads(marker), 0, None, 4):
        for file in ('pytorch_model.bin', 'model.pth', 'model.safetensors', 'x.pth.tar'):
            for old in (*folder.glob('*.safetensors'), *folder.glob('*model.*'), *folder.glob('*.tar')):
                old.unlink(missing_ok=True)
            torch.save(obj, folder / file)
            with attack.case(f'{name} as {file}'):
                refusal(timm.create_model, f'local-dir:{folder}', pretrained=True)
                assert not asked
                assert not marker.exists()
