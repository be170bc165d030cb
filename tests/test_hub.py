"""Weights over the network: the real clients against a Hub and a web server on 127.0.0.1, well-behaved and not."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from golden import authors_state_dict, load_model_case
from hub_server import Hub
from huggingface_hub.utils.sha import git_hash
from safetensors.torch import save

from timm_attn.models import zoo_models
from timm_attn.weights import weights

ROOT = Path(__file__).parent.parent
AUTHORS = {'mbv2_ca.houqb_in1k': 'houqb_mbv2_ca', 'mobilenext.houqb_in1k': 'zhou_mobilenext_100'}
CIFAR = 'csa_resnet20_cifar.cifar10'

WORKER = """
import json, sys, timm, timm_attn
for line in sys.stdin:
    scope = {'timm': timm}
    try:
        exec(json.loads(line), scope)
        answer = scope.get('result')
    except Exception as e:
        answer = [type(e).__name__, str(e)]
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope='module')
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(autouse=True)
def well_behaved(hub):
    yield
    hub.faults.clear()
    hub.requests.clear()
    hub.sent.clear()


@pytest.fixture(scope='module')
def package(hub, tmp_path_factory):
    """The package with the authors' files at the local server, and their checksums; and the folder it lies in."""
    folder = tmp_path_factory.mktemp('package')
    shutil.copytree(ROOT / 'timm_attn', folder / 'timm_attn', ignore=shutil.ignore_patterns('__pycache__'))
    manifest = folder / 'timm_attn' / 'weights' / 'manifest.json'
    rows = json.loads(manifest.read_text())
    for row in rows:
        if row['name'] in AUTHORS:
            buffer = io.BytesIO()
            torch.save(authors_state_dict(load_model_case(AUTHORS[row['name']])), buffer)
            name = row['url'].rpartition('/')[2]
            hub.files[name] = buffer.getvalue()
            row |= {'url': f'{hub.url}/files/{name}', 'git_blob_sha1': git_hash(buffer.getvalue())}
    manifest.write_text(json.dumps(rows))
    return folder


def backbone(hub, base):
    """A plain backbone in the place of timm's weight."""
    if f'timm/{base}' not in hub.repos:
        torch.manual_seed(1)
        model = timm.create_model(base.partition('.')[0])
        hub.add(f'timm/{base}', model__safetensors=save(model.state_dict()), config__json=b'{}')


def environment(hub, package, home, **extra):
    return {
        **os.environ,
        'HF_ENDPOINT': hub.url,
        'HF_HUB_OFFLINE': '0',
        'HF_HUB_DISABLE_XET': '1',
        'HF_HOME': str(home / 'hf'),
        'TORCH_HOME': str(home / 'torch'),
        'PYTHONPATH': os.pathsep.join(
            filter(None, (str(package), str(ROOT / 'scripts'), os.environ.get('PYTHONPATH')))
        ),
        **extra,
    }


def python(code, hub, package, home, preexec_fn=None, **extra):
    process = subprocess.run(
        [sys.executable, '-c', code], cwd=home, capture_output=True, text=True, preexec_fn=preexec_fn,
        env=environment(hub, package, home, **extra),
    )  # fmt: skip
    assert 'Traceback' not in process.stderr, process.stderr
    return process.stdout.strip()


@contextmanager
def worker_process(hub, package, home):
    """Function that runs code in one process which has loaded the package; the value of ``result`` comes back."""
    process = subprocess.Popen(
        [sys.executable, '-c', WORKER], cwd=home, env=environment(hub, package, home), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def run(code):
        process.stdin.write(json.dumps(code) + '\n')
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait()


@pytest.fixture(scope='module')
def worker(hub, package, tmp_path_factory):
    with worker_process(hub, package, tmp_path_factory.mktemp('home')) as run:
        yield run


def in_two_processes(code, hub, package, home):
    """What two processes that run the same code at once write to stdout and stderr."""
    processes = [
        subprocess.Popen([sys.executable, '-c', code], cwd=home, env=environment(hub, package, home), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    return [process.communicate() for process in processes]


def create(name, cache, **kwargs):
    args = ''.join(f', {k}={v!r}' for k, v in kwargs.items())
    return (
        f'model = timm.create_model({name!r}, pretrained=True, cache_dir={str(cache)!r}{args})\n'
        "stem = 'conv_stem.weight' if hasattr(model, 'conv_stem') else 'conv1.weight'\n"
        'result = float(model.state_dict()[stem].double().sum())'
    )


def checksum(state_dict):
    stem = 'conv1.weight' if 'conv1.weight' in state_dict else 'conv_stem.weight'
    return pytest.approx(float(state_dict[stem].double().sum()), abs=1e-5)  # summed channels are rounded


def plain_checksum(base):
    torch.manual_seed(1)
    return checksum(timm.create_model(base).state_dict())


def complete_files(cache):
    """Names under which a client would find files, whatever their content."""
    return [p for p in Path(cache).rglob('*') if p.is_file() and p.parent.name not in ('blobs', '.locks') and
            p.suffix in ('.safetensors', '.pth', '.tar', '.bin')]  # fmt: skip


def test_a_warm_start_from_the_hub(hub, worker, package, tmp_path):
    backbone(hub, 'resnet18.a1_in1k')
    expected = plain_checksum('resnet18')
    assert worker(create('csa_resnet18', tmp_path)) == expected
    assert worker(create('csa_resnet18.warm_a1_in1k', tmp_path, num_classes=7)) == expected
    assert worker(create('scsa_resnet18', tmp_path, features_only=True)) == expected
    assert sum(n for r, n in hub.requests.items() if r.startswith('GET /cdn')) == 1  # then from the cache

    code = f'import timm, timm_attn\n{create("csa_resnet18", tmp_path)}\nprint(result)'
    hub.requests.clear()
    assert float(python(code, hub, package, tmp_path, HF_HUB_OFFLINE='1')) == expected
    assert not hub.requests
    assert float(python(code, hub, package, tmp_path, HF_ENDPOINT='http://127.0.0.1:9')) == expected


def test_an_attached_model_and_the_hub(hub, worker, tmp_path):
    """The backbone's weights come from the Hub; what was attached goes there and comes back."""
    backbone(hub, 'resnet18.a1_in1k')
    code = (
        'from timm.models import push_to_hf_hub\n'
        'import torch\n'
        "made_of = dict(backbone='resnet18.a1_in1k', attention='eca', stages=[2, 3])\n"
        f"plain = timm.create_model('resnet18.a1_in1k', pretrained=True, cache_dir={str(tmp_path)!r}).eval()\n"
        f"model = timm.create_model('attached', pretrained=True, cache_dir={str(tmp_path)!r}, **made_of).eval()\n"
        'x = torch.randn(1, 3, 64, 64)\n'
        'same = torch.equal(model(x), plain(x))\n'
        'model.layer4[1].se.conv.weight.data.fill_(0.3)\n'
        'options = dict(safe_serialization=True, model_args=model.attached_args)\n'
        f"push_to_hf_hub(model, 'me/attached', token={hub.token!r}, **options)\n"
        f"again = timm.create_model('hf-hub:me/attached', pretrained=True, cache_dir={str(tmp_path)!r}).eval()\n"
        'weight = again.layer4[1].se.conv.weight.flatten().tolist()\n'
        'result = [same, torch.equal(model(x), again(x)), weight, again.attached_args]\n'
    )
    same, round_trip, weight, made_of = worker(code)
    assert same
    assert round_trip
    assert weight == pytest.approx([0.3] * 5)
    assert made_of.items() >= dict(backbone='resnet18.a1_in1k', attention='eca', stages=[2, 3]).items()


def test_the_authors_files(hub, worker, tmp_path):
    for name, case in AUTHORS.items():
        arch = name.partition('.')[0]
        expected = timm.create_model(arch)
        expected.load_state_dict(authors_state_dict(load_model_case(case)))
        assert worker(create(arch, tmp_path)) == checksum(expected.state_dict())
    downloads = sum(hub.requests.values())
    assert worker(create('mobilenext', tmp_path)) == worker(create('mobilenext_ca', tmp_path))
    assert sum(hub.requests.values()) == downloads == 2
    whole = worker(create('mbv2_ca', tmp_path))
    assert worker(create('mbv2_ca', tmp_path, num_classes=3, in_chans=1)) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize('what', ['wrong bytes', 'wrong size', 'drop', 404, 500])
def test_the_authors_file_is_checked(what, hub, worker, tmp_path):
    hub.fault('/files/', what)
    error, message = worker(create('mbv2_ca', tmp_path))
    assert error == 'DownloadError'
    assert f'{hub.url}/files/mbv2_ca.pth' in message
    assert (str(what) if isinstance(what, int) else 'It was not kept') in message
    assert not list(tmp_path.iterdir())
    hub.faults.clear()
    assert isinstance(worker(create('mbv2_ca', tmp_path)), float)


def test_files_of_that_name_in_the_cache(hub, worker, tmp_path):
    (tmp_path / 'mnext.pth.tar').write_bytes(b'of the user')
    good = worker(create('mobilenext', tmp_path))
    assert (tmp_path / 'mnext.pth.tar').read_bytes() == b'of the user'
    (ours,) = (p for p in tmp_path.iterdir() if p.name != 'mnext.pth.tar')
    ours.write_bytes(ours.read_bytes()[:-9])
    assert worker(create('mobilenext', tmp_path)) == good
    assert hub.requests['GET /files/mnext.pth.tar'] == 2


def test_the_model_states_the_origin_of_its_weights(hub, worker, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    cfg = "result = [model.pretrained_cfg.get(k) for k in ('file', 'source', 'hf_hub_id', 'url', 'tag')]"
    for name in ('mbv2_ca_050', 'mobilenext'):
        for args in ({}, dict(features_only=True)):
            file, source, hub_id, url, tag = worker(create(name, tmp_path, **args) + '\n' + cfg)
            assert file is source is None
            assert (hub_id or url).endswith(('timm/mobilenetv2_050.lamb_in1k', '/mnext.pth.tar'))
            assert tag == weights_tag(name)


def weights_tag(name):
    return timm.models.get_pretrained_cfg(name).tag


# what the Hub does wrong -> what the message says
MISBEHAVIOUR = {
    'unauthorised': (('HEAD .*/resolve/', 401), 'log in'),
    'gone': (('HEAD .*/resolve/', 404), 'check the name'),
    'too many': (('HEAD .*/resolve/', 429), 'wait'),
    'broken': (('HEAD .*/resolve/', 500), 'try again later'),
    'broken storage': (('GET /cdn/', 500), 'try again later'),
    'dropped': (('GET /cdn/', 'drop'), 'Check the connection'),
    'too short': (('GET /cdn/', 'wrong size'), 'Check the connection'),
    'other bytes': (('GET /cdn/', 'wrong bytes'), 'removed from the cache'),
}
PATIENT = ('too many', 'broken', 'dropped')  # huggingface_hub tries these again, for seconds


@pytest.mark.parametrize('case', [pytest.param(c, marks=[pytest.mark.slow] * (c in PATIENT)) for c in MISBEHAVIOUR])
def test_no_misbehaviour_of_the_hub_gives_a_model(case, hub, worker, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    fault, message_part = MISBEHAVIOUR[case]
    hub.fault(*fault)
    error, message = worker(create('mbv2_ca_050', tmp_path))
    assert error == 'DownloadError'
    assert message_part in message
    assert 'mobilenetv2_050.lamb_in1k' in message
    assert not complete_files(tmp_path)
    hub.faults.clear()  # and once it behaves, all is well
    assert worker(create('mbv2_ca_050', tmp_path)) == plain_checksum('mobilenetv2_050')


def test_an_interrupted_download_resumes(hub, worker, tmp_path):
    backbone(hub, 'resnet18.a1_in1k')
    expected = plain_checksum('resnet18')
    hub.fault('GET /cdn/', 'drop', times=1)
    first = worker(create('csa_resnet18', tmp_path))
    if first != expected:  # old clients give up, and start over the next time
        assert first[0] == 'DownloadError'
        assert worker(create('csa_resnet18', tmp_path)) == expected
        return
    size = len(hub.repos['timm/resnet18.a1_in1k'].at('main')[1]['model.safetensors'])
    assert size < sum(hub.sent) < 1.2 * size  # of the first half, all but the last chunk was kept


def test_without_a_network(package, hub, tmp_path):
    code = """
import timm, timm_attn
try:
    timm.create_model('csa_resnet18', pretrained=True)
except timm_attn.weights.DownloadError as e:
    print(e)
"""
    out = python(code, hub, package, tmp_path, HF_HUB_OFFLINE='1')
    assert 'HF_HUB_OFFLINE is set' in out
    assert 'local-dir:PATH' in out


def test_without_a_connection_the_answer_comes_at_once(package, hub, tmp_path):
    """Without the retries of the Hub's client, which take half a minute and print a line each."""
    code = """
import time, timm, timm_attn
from timm_attn.weights.download import explain_hub_failure
time.sleep = lambda seconds: print('slept')
for name in ('csa_resnet18', 'resnet18', 'hf-hub:timm/resnet18.a1_in1k'):
    try:
        with explain_hub_failure(name, pretrained=True):
            timm.create_model(name, pretrained=True)
    except timm_attn.weights.DownloadError as e:
        print(e.offline, 'pretrained_cfg_overlay' in str(e))
"""
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        env=environment(hub, package, tmp_path, HF_ENDPOINT='http://127.0.0.1:9'),
    )  # fmt: skip
    assert process.stdout == 'True True\n' * 3
    assert not process.stderr


def bounded(code, silence, grace):
    bounds = (
        f'http_file.SILENCE, http_file.GRACE, http_file.MIN_RATE, http_file.MAX_SIZE = {silence}, {grace}, 10**9, 10**6'
    )
    return f'from timm_attn.weights import http_file\n{bounds}\n{code}'


def drips(handler):
    handler.send(200, b'', Content_Length='100000')
    for _ in range(300):
        handler.wfile.write(b'x')
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler):
    handler.send(200, b'', Content_Length='')
    for _ in range(100_000):
        handler.wfile.write(bytes(10_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fault', 'told'),
    [
        (lambda handler: time.sleep(3), 'timed out'),
        (drips, 'TimeoutError: the server needs more than'),
        (endless, 'it does not end after 1000000 bytes'),
        (lambda handler: handler.send(200, b'', Content_Length=str(10**12)), f'it has {10**12} bytes'),
    ],
    ids=['silent', 'drips', 'endless', 'huge'],
)
def test_a_download_is_bounded(fault, told, hub, package, tmp_path):
    hub.fault('/files/', fault)
    code = bounded(create('mbv2_ca', tmp_path / 'cache'), 1, 2).replace('\n', '\n    ')
    code = f'import timm, timm_attn\ntry:\n    {code}\nexcept timm_attn.weights.DownloadError as e:\n    print(e)'
    assert told in python(code, hub, package, tmp_path)
    assert not list((tmp_path / 'cache').iterdir())


def test_what_killed_downloads_left_is_removed(hub, worker, tmp_path):
    old, young, other = (
        tmp_path / n for n in (f'a.01234567.pth.{"0" * 32}.part', f'b.01234567.pth.{"0" * 32}.part', 'c.part')
    )
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    assert isinstance(worker(create('mbv2_ca', tmp_path)), float)
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


@pytest.mark.parametrize('config', [b'<!doctype html>', b'[]', b'{"architecture": 3}'])
def test_a_config_that_is_none(config, hub, worker, tmp_path):
    repo = f'me/broken{len(config)}'
    hub.add(repo, config__json=config)
    code = f"""
from timm_attn.weights.download import explain_hub_failure
with explain_hub_failure('hf-hub:{repo}', cache_dir={str(tmp_path)!r}):
    result = type(timm.create_model('hf-hub:{repo}', cache_dir={str(tmp_path)!r})).__name__
"""
    error, message = worker(code)
    assert error == 'DownloadError'
    assert f'{repo} ' in message
    hub.add(repo, config__json=b'{"architecture": "csa_resnet20_cifar", "pretrained_cfg": {}}')
    assert worker(code) == 'CsaCifarResNet'  # what was broken is not in the way


def test_other_failures_stay_what_they_are(worker):
    code = 'from timm_attn.weights.download import explain_hub_failure\nwith explain_hub_failure({!r}): {}'
    assert worker(code.format('resnet18', "raise KeyError('mine')"))[0] == 'KeyError'
    assert (
        worker(code.format('local-dir:/nowhere', 'timm.create_model("local-dir:/nowhere")'))[0] == 'FileNotFoundError'
    )
    assert worker(code.format('nonsense', 'timm.create_model("nonsense")')) == [
        'RuntimeError',
        'Unknown model (nonsense)',
    ]


@pytest.mark.parametrize('etag', ['../../../escaped', '/tmp/escaped', '..'])
def test_nothing_is_placed_outside_of_the_cache(etag, hub, worker, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    content = hub.repos['timm/mobilenetv2_050.lamb_in1k'].at('main')[1]['model.safetensors']
    headers = dict(X_Repo_Commit='0' * 40, X_Linked_Etag=f'"{etag}"', X_Linked_Size=str(len(content)))
    hub.files['any'] = content
    hub.fault('/resolve/', lambda h: h.send(302, b'', Location=f'{hub.cdn}/files/any', ETag='"x"', **headers))
    error, message = worker(create('mbv2_ca_050', tmp_path / 'a' / 'cache'))
    assert error == 'DownloadError'
    assert 'is refused' in message
    assert not list(tmp_path.iterdir())


def test_a_link_of_the_user_is_not_used_and_not_removed(hub, worker, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    assert isinstance(worker(create('mbv2_ca_050', tmp_path / 'cache')), float)
    (link,) = (tmp_path / 'cache').rglob('model.safetensors')
    target = link.resolve().rename(tmp_path / 'elsewhere')
    link.unlink()
    link.symlink_to(target)
    error, message = worker(create('mbv2_ca_050', tmp_path / 'cache'))
    assert error == 'DownloadError'
    assert 'outside of the cache' in message
    assert link.is_symlink()
    assert target.exists()


def test_cache_that_cannot_be_written(hub, worker, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    (tmp_path / 'file').touch()
    for name, home in (('mbv2_ca_050', 'HF_HOME'), ('mbv2_ca', 'TORCH_HOME')):
        error, message = worker(create(name, tmp_path / 'file' / 'cache'))
        assert error == 'DownloadError'
        assert f'set {home} to a folder that can be written' in message


def test_full_disk(hub, package, tmp_path):
    """A disk that takes no more than 3 MB of a file."""
    resource = pytest.importorskip('resource')
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    code = """
import timm, timm_attn
for name in ('mbv2_ca_050', 'mbv2_ca'):
    try:
        timm.create_model(name, pretrained=True)
        print('loaded')
    except timm_attn.weights.DownloadError as e:
        print(e)
"""
    limit = 3_000_000
    out = python(code, hub, package, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert len(re.findall('free some space', out)) == 2, out
    assert not complete_files(tmp_path)
    assert python(code, hub, package, tmp_path) == 'loaded\nloaded'


@pytest.mark.slow
def test_two_processes_at_once(hub, package, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    code = """
import timm, timm_attn
for name in ('mbv2_ca_050', 'mbv2_ca'):
    timm.create_model(name, pretrained=True)
    print('loaded')
"""
    for out, err in in_two_processes(code, hub, package, tmp_path):
        assert out == 'loaded\nloaded\n', err


@pytest.mark.slow
def test_one_bad_transfer_among_two_processes(hub, package, tmp_path):
    """Whoever gets the bad bytes says so; nobody loads them, whoever comes first."""
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    code = """
import timm, timm_attn
for name, stem in (('mbv2_ca_050', 'conv_stem'), ('mbv2_ca', 'conv_stem')):
    try:
        model = timm.create_model(name, pretrained=True)
        print(float(model.classifier.bias.sum()))
    except timm_attn.weights.DownloadError as e:
        print('refused')
"""
    hub.fault('GET /cdn/', 'wrong bytes', times=1)
    hub.fault('/files/', 'wrong bytes', times=1)
    answers = []
    for out, err in in_two_processes(code, hub, package, tmp_path):
        assert 'Traceback' not in err, err
        answers.append(out.split())
    good = python(code, hub, package, tmp_path).split()
    assert 'refused' not in good
    for i in range(2):
        assert {a[i] for a in answers} <= {'refused', good[i]}
        assert 'refused' in {a[i] for a in answers}


@pytest.mark.slow
def test_all_that_is_listed_loads(hub, worker, tmp_path):
    names = [n for n in timm.list_pretrained() if n in zoo_models(include_tags=True)]
    assert names == zoo_models(pretrained=True)
    assert set(names) == {w.name for w in weights().values() if w.kind != 'untrained'}
    for name in names:
        base = weights()[name].base_weight
        if base and base not in weights():
            backbone(hub, base)
            assert worker(create(name, tmp_path)) == plain_checksum(base.partition('.')[0]), name
        else:
            assert isinstance(worker(create(name, tmp_path)), float), name
    # and a model is not listed if it cannot
    for arch in set(zoo_models()) - {n.partition('.')[0] for n in names}:
        error, message = worker(create(arch, tmp_path))
        assert error == 'RuntimeError'
        assert 'No pretrained weights exist' in message


@pytest.fixture(scope='module')
def release(hub, worker):
    """Function that runs scripts/release.py; status and output."""

    def run(home, *args, token=None):
        code = f"""
import contextlib, io, os
import release
os.chdir({str(home)!r})
os.environ['HF_TOKEN'] = {hub.token if token is None else token!r}
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    status = release.main({list(args)!r})
result = [status, out.getvalue()]
"""
        return worker(code)

    return run


@pytest.fixture(scope='module')
def built(release, tmp_path_factory):
    home = tmp_path_factory.mktemp('built')
    status, out = release(home, 'build', 'out', '--only', CIFAR)
    assert status == 0, out
    assert f'{CIFAR}: built' in out
    return home


def test_build_and_verify(hub, release, built, tmp_path):
    folder = built / 'out' / CIFAR
    files = {'model.safetensors', 'config.json', 'README.md', 'test_io.safetensors'}
    assert {p.name for p in folder.iterdir()} == files
    assert (folder / 'README.md').read_text() == (ROOT / 'model_cards' / f'{CIFAR}.md').read_text()
    assert json.loads((folder / 'config.json').read_text())['architecture'] == 'csa_resnet20_cifar'
    status, out = release(built, 'verify', 'out', '--only', CIFAR)
    assert status == 0
    assert '4 checksums right' in out

    shutil.copytree(built / 'out', tmp_path / 'out')
    damaged = tmp_path / 'out' / CIFAR / 'model.safetensors'
    damaged.write_bytes(damaged.read_bytes()[:-1] + b'?')
    status, out = release(tmp_path, 'verify', 'out', '--only', CIFAR)
    assert status == 1
    assert 'model.safetensors is not the file that was built' in out
    status, out = release(tmp_path, 'push', 'out', '--org', 'nobody', '--only', CIFAR)
    assert status == 1
    assert 'nobody' not in str(hub.repos)


def test_publish_and_come_back(hub, release, built, worker, tmp_path):
    push = ('push', 'out', '--org', 'zoo', '--only', CIFAR)
    repo = f'zoo/{CIFAR}'
    status, out = release(built, *push, '--dry-run')
    assert status == 0
    assert 'would upload model.safetensors' in out
    assert repo not in hub.repos

    status, out = release(built, *push, token='')
    assert status == 1
    assert 'token that may write' in out

    status, out = release(built, *push, '--private')
    assert status == 0, out
    assert '1 of 1 done' in out
    assert hub.repos[repo].private
    assert len(hub.repos[repo].commits) == 2  # the first one is the repository's own
    hub.repos[repo].private = False
    assert not [n for n in hub.repos[repo].commits[-1][2] if n.endswith(('.bin', '.pth', '.pt', '.pkl'))]

    hub.requests.clear()
    status, out = release(built, *push)
    assert 'nothing to upload' in out
    assert not [r for r in hub.requests if r.startswith('PUT') or '/commit/' in r]
    assert len(hub.repos[repo].commits) == 2

    first = hub.repos[repo].at('main')[0]
    hub.add(repo, README__md=b'an old card')
    hub.requests.clear()
    status, out = release(built, 'check', '--org', 'zoo', '--only', CIFAR)
    assert status == 1
    assert 'the card' in out
    status, out = release(built, *push)
    assert 'uploaded README.md (' in out
    assert not [r for r in hub.requests if r.startswith('PUT')]
    assert hub.repos[repo].at('main')[1]['README.md'].decode() == (ROOT / 'model_cards' / f'{CIFAR}.md').read_text()
    status, out = release(built, 'check', '--org', 'zoo', '--only', CIFAR)
    assert status == 0, out
    assert 'loads from the Hub' in out

    expected = checksum(timm.create_model(CIFAR, pretrained=True).state_dict())
    assert worker(create(f'hf-hub:{repo}', tmp_path)) == expected
    assert worker(create(f'hf-hub:{repo}@{first}', tmp_path)) == expected
    assert worker(create(f'local-dir:{built}/out/{CIFAR}', tmp_path)) == expected
    assert worker(create(f'hf-hub:{repo}', tmp_path, num_classes=3, in_chans=1)) == expected  # channels are summed
    labels = "result = timm.create_model('hf-hub:" + repo + "', pretrained=True).pretrained_cfg['label_names'][3]"
    assert worker(labels) == 'cat'
    assert 'Revision' in str(worker(create(f'hf-hub:{repo}@{"0" * 40}', tmp_path)))


def test_without_the_import_timm_does_not_know_the_name(hub, built, package, tmp_path):
    code = f"""
import timm
for name in ('local-dir:{built}/out/{CIFAR}',):
    try:
        timm.create_model(name, pretrained=True)
    except RuntimeError as e:
        print(e)
"""
    assert python(code, hub, package, tmp_path) == 'Unknown model (csa_resnet20_cifar)'


@pytest.mark.parametrize(
    ('fault', 'told'),
    [
        (('POST .*/batch', 401), 'token that may write'),
        (('POST .*/commit/', 403), 'token that may write'),
        pytest.param(('PUT /upload/', 500), 'try again later', marks=pytest.mark.slow),
        pytest.param(('POST .*/preupload/', 429), 'wait', marks=pytest.mark.slow),
        pytest.param(('PUT /upload/', 'drop'), 'Check the connection', marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_push_resumes(fault, told, hub, release, built):
    org = f'org{abs(hash(fault)) % 10**6}'
    push = ('push', 'out', '--org', org, '--only', CIFAR)
    hub.lfs.clear()
    hub.fault(*fault)
    status, out = release(built, *push)
    assert status == 1, out
    assert told in out
    repo = hub.repos[f'{org}/{CIFAR}']
    assert len(repo.commits) == 1  # nothing half-done can be seen
    there = set(hub.lfs)
    hub.faults.clear()
    hub.requests.clear()
    status, out = release(built, *push)
    assert status == 0, out
    assert len(repo.commits) == 2
    sent_again = {r.rpartition('/')[2] for r in hub.requests if r.startswith('PUT')}
    assert not there & sent_again
    assert set(repo.commits[-1][2]) >= {'model.safetensors', 'config.json', 'README.md', 'test_io.safetensors'}


def test_release_of_what_cannot_be_had(hub, release, tmp_path):
    hub.fault('/timm/resnet34', 404)
    status, out = release(tmp_path, 'build', 'out', '--only', '*csa_resnet34.*')
    assert status == 1
    assert '0 of 2 done, 2 failed' in out
    assert 'Cannot download the weights of timm/resnet34.a1_in1k' in out
    assert not (tmp_path / 'out' / 'csa_resnet34.warm_a1_in1k').exists()
    status, out = release(tmp_path, 'verify', 'out', '--only', 'csa_resnet34.*')
    assert 'build it first' in out
    status, out = release(tmp_path, 'build', 'out', '--only', 'nothing*')
    assert status == 2
    assert 'no weight that may be published' in out


def test_push_without_a_network(package, built, hub, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / 'scripts')!r})
import release
sys.exit(print(release.main(['push', {str(built / 'out')!r}, '--org', 'x', '--only', {CIFAR!r}])))
"""
    out = python(code, hub, package, tmp_path, HF_ENDPOINT='http://127.0.0.1:9')
    assert 'FAILED: Cannot upload' in out
    assert 'run it again' in out
    assert '1 failed' in out
    assert out.endswith('1')


@pytest.mark.slow
def test_release_of_a_warm_start(hub, release, tmp_path):
    backbone(hub, 'mobilenetv2_050.lamb_in1k')
    only = ('--only', 'mbv2_ca_050*')
    for command in (('build', 'out'), ('verify', 'out'), ('push', 'out', '--org', 'warm'), ('check', '--org', 'warm')):
        status, out = release(tmp_path, *command, *only)
        assert status == 0, out
    first = (tmp_path / 'out' / 'SHA256SUMS').read_text()
    release(tmp_path, 'build', 'out', *only)
    assert (tmp_path / 'out' / 'SHA256SUMS').read_text() == first  # fresh layers are drawn alike
    status, out = release(tmp_path, 'push', 'out', '--org', 'warm', *only)
    assert 'nothing to upload' in out
