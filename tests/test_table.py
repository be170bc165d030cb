"""Table 1 of CSA-Net: the models that it names, the counts, the comparison with what is reported, the command."""

import csv
import json
from pathlib import Path

import pytest
import tables
import timm
import torch
from test_package import cli
from torch import nn

from timm_attn.cli import main
from timm_attn.models.paper_table import (
    HEAD,
    Row,
    agreement,
    cells,
    compare,
    measure_cost,
    measure_time,
    read_table,
)
from timm_attn.timing import calibrate_norms

ROOT = Path(__file__).parent.parent
TABLE = read_table()
ROWS = {(row.method, row.depth): row for row in TABLE.rows()}
WITH_MODEL = [key for key, row in ROWS.items() if row.model]
BASES = {'timm', "authors' code", 'reconstructed', 'not derivable'}
# Parameters of networks that the authors' code builds, or, where there is none, that was built after the text.
PARAMS = {
    'ResNet': (25_557_032, 44_549_160),
    'SE': (28_088_024, 49_326_872),
    'CBAM': (28_089_624, 49_330_172),
    'CBAM*': (28_088_024, 49_326_872),
    'BAM': (25_915_099, 44_907_227),
    'ECA': (25_557_112, 44_549_325),
    'FCA': (28_071_976, 49_292_328),
    'BA': (28_706_376, 50_490_312),
    'GSoP': (28_285_224, 47_277_352),
    'DIA': (28_358_052, 47_350_180),
    'GALA': (29_377_608, 51_767_577),
    'AA': (25_809_392, 45_386_728),
    'SASA': (18_015_504, 30_326_768),
}


def committed():
    return json.loads(tables.CSA_NET.read_text(encoding='utf-8'))


def table(*args, cwd, check=True):
    return cli('table', 'csa-net', *args, cwd=cwd, check=check)


def test_the_table_is_whole():
    methods = {method.name: method for method in TABLE.methods}
    assert next(iter(methods)) == 'ResNet'  # the reference of the times is the first row of each depth
    assert set(PARAMS) <= set(methods)
    assert set(methods) == {*PARAMS, 'GCT', 'CSA', 'NL-SAM', 'bi-SGA'}
    for method in methods.values():
        assert method.basis in BASES
        assert method.title
        assert method.remark.endswith('.')
        assert [row.depth for row in method.rows] == ([50] if method.name == 'NL-SAM' else [50, 101])
        assert all((row.model is None) == (method.basis == 'not derivable') for row in method.rows)
    figures = [getattr(row, n) for row in ROWS.values() for n in ('params', 'gflops', 'top1_error', 'top5_error')]
    assert all(figure is None or float(figure) > 0 for figure in figures)


@pytest.mark.parametrize(('method', 'depth'), WITH_MODEL)
def test_every_model_exists_and_costs_what_is_committed(method, depth):
    row = ROWS[method, depth]
    assert timm.is_model(row.model)
    cost = measure_cost(row, 224)
    if method in PARAMS:
        assert cost['params'] == PARAMS[method][depth == 101]
    (measured,) = [r['measured'] for r in committed()['rows'] if (r['method'], r['depth']) == (method, depth)]
    assert {key: measured[key] for key in cost} == cost, 'run timm-attn table csa-net --time --json ...'


def test_the_committed_measurement_is_of_this_table_and_tells_its_machine():
    run = committed()
    assert run['image_size'] == 224
    assert [(r['method'], r['depth'], r['model']) for r in run['rows']] == [
        (r.method, r.depth, r.label) for r in ROWS.values()
    ]
    assert run['time'], 'run timm-attn table csa-net --time --json ...'
    assert {'device', 'threads', 'torch', 'date', 'allocator'} <= run['time']['machine'].keys()
    for row in run['rows']:
        assert (
            row['measured'] is None or row['measured']['least'] <= row['measured']['ratio'] <= row['measured']['most']
        )


def test_cbam_star_has_the_channel_gate_alone():
    kinds = {type(m).__name__ for m in ROWS['CBAM*', 50].build().modules()}
    assert 'CbamChannel' in kinds
    assert not kinds & {'CbamModule', 'SpatialAttn'}


def test_a_row_without_a_model_cannot_be_built():
    with pytest.raises(ValueError, match=r'NL-SAM has no model; its remark'):
        ROWS['NL-SAM', 50].build()


@pytest.mark.parametrize(
    ('reported', 'measured', 'expected'),
    [
        ('28.1', 28.088024, 'yes'),
        ('25.5', 25.557112, 'cut off'),
        ('26.2', 26.25, 'cut off'),  # a half is rounded up
        ('28.4', 28.071976, 'no, -1.2 %'),
        ('8.30', 8.424, 'no, +1.5 %'),
        ('6.56', 6.564, 'yes'),
        ('45.4', None, None),
        (None, 4.1, None),
    ],
)
def test_agreement(reported, measured, expected):
    assert agreement(reported, measured) == expected


def test_operations_are_compared_with_twice_the_multiply_adds():
    row = Row(method='AA', depth=50, model='m', params='1.0', gflops='8.30', operations_per_mac=2)
    measured = dict(params=1_000_000, gmacs=4.15, activations=1.0)
    assert compare(row, measured, 224, TABLE) == dict(params='yes', gflops='yes')
    assert compare(row, measured, 256, TABLE) == dict(params='yes', gflops=None)  # the paper's size is 224
    assert compare(row, None, 224, TABLE) == dict(params=None, gflops=None)
    assert {row.method for row in ROWS.values() if row.operations_per_mac == 2} == {'AA', 'SASA'}


def test_gsop_meets_its_gflops_with_the_centring_of_the_authors_code():
    row = ROWS['GSoP', 50]
    reduced, positions = 128, (28**2, 28**2, 14**2, 14**2)  # of the four stages; stage 1 is reduced at stride 2
    centring = reduced * sum(n * n for n in positions) / 1e9
    assert f'{centring:.3f} G' in next(m.remark for m in TABLE.methods if m.name == 'GSoP')
    gmacs = measure_cost(row, 224)['gmacs']
    assert agreement(row.gflops, gmacs) != 'yes'
    assert agreement(row.gflops, gmacs + centring) == 'yes'


def test_cells():
    measured = dict(params=25_557_112, gmacs=4.0916, activations=11.1, ratio=1.061, least=1.02, most=1.1)
    line = dict(zip(HEAD, cells(ROWS['ECA', 50], measured, 224, TABLE), strict=False))  # 'agrees' is there twice
    assert line['params (M), reported'] == '25.5'
    assert line['params (M)'] == '25.557'
    assert line['time'] == '1.06 (1.02 to 1.10)'
    assert line['top-5 error (%), reported'] == '-'
    assert line['model'] == 'eca_resnet50'
    assert cells(ROWS['bi-SGA', 50], None, 224, TABLE) == ('bi-SGA', '25.6', *'-' * 10)


def test_the_page_has_every_row_and_remark():
    text = (ROOT / 'docs' / 'csa_net_table.md').read_text(encoding='utf-8')
    assert tables.csa_net_tables() in text
    assert tables.csa_net_remarks() in text
    assert all(f'`{row.label}`' in text for row in ROWS.values() if row.model)
    assert all(method.remark in text for method in TABLE.methods)


def test_command(tmp_path):
    done = table('--depth', '50', '--csv', 't.csv', '--json', 't.json', cwd=tmp_path)
    assert 'ResNet-101,' not in done.stdout
    printed = [line.split() for line in done.stdout.splitlines()]
    assert ['CSA', '26.2', '26.257', 'cut', 'off', '-', '4.507', '-', '11.12', '-', '-', '-', 'csa_resnet50'] in printed
    words = ' '.join(done.stdout.replace('\n', ' ').split())
    assert all(method.remark.replace('`', '') in words for method in TABLE.methods)
    with open(tmp_path / 't.csv', newline='', encoding='utf-8') as file:
        lines = {line['method']: line for line in csv.DictReader(file)}
    content = json.loads((tmp_path / 't.json').read_text())
    assert content['time'] is None
    for row in content['rows']:
        assert row['depth'] == 50
        line = lines.pop(row['method'])
        assert line['reported_params'] == (row['reported']['params'] or '')
        assert line['measured_params'] == (str(row['measured']['params']) if row['measured'] else '')
        assert line['agrees_params'] == (row['agrees']['params'] or '')
        assert line['remark'] == row['remark']
    assert not lines
    (csa,) = [row for row in content['rows'] if row['method'] == 'CSA']
    assert csa['measured'] == measure_cost(ROWS['CSA', 50], 224)


@pytest.mark.slow
def test_command_measures_time(tmp_path):
    threads = torch.get_num_threads()
    args = ('--depth', '50', '--img-size', '64', '--time', '--turns', '1', '--batch-size', '1', '--threads', '1')
    try:
        done = table(*args, '--json', 't.json', cwd=tmp_path)
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / 't.json').read_text())
    assert content['time']['batch_size'] == content['time']['turns'] == content['time']['machine']['threads'] == 1
    plain, *others = [row['measured'] for row in content['rows'] if row['measured']]
    assert plain['ratio'] == 1
    assert len(others) + 1 == len([key for key in WITH_MODEL if key[1] == 50])
    for row in others:
        assert row['milliseconds'] > 0
        assert row['ratio'] == pytest.approx(row['milliseconds'] / plain['milliseconds'], rel=0.02)
    assert f' {others[0]["ratio"]:.2f} ' in done.stdout


def test_networks_take_turns():
    """Each turn passes through all networks; the first turn warms up."""
    counts = []
    rows = [ROWS['ResNet', 50], ROWS['SE', 50]]
    found = measure_time(rows, 32, 2, 3, torch.device('cpu'), lambda: counts.append(1))
    assert len(counts) == len(rows) * (3 + 2)
    assert found[0]['ratio'] == found[0]['least'] == found[0]['most'] == 1
    assert found[1]['least'] <= found[1]['ratio'] <= found[1]['most']


@pytest.mark.parametrize('images', [1, 2])
def test_calibrated_norms_let_every_map_through(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.01), nn.Flatten(), nn.BatchNorm1d(288))
    nn.init.zeros_(model[1].weight)
    x = torch.randn(images, 3, 8, 8)
    assert calibrate_norms(model, x) is model
    assert not model.training
    assert (model[1].momentum, model[3].momentum) == (0.01, 0.1)
    out = model(x)
    assert out.abs().amin(0).max() > 0
    assert model[1](model[0](torch.randn(64, 3, 8, 8))).std(dim=(0, 2, 3)).min() > 0.3


WRONG = {
    'no table': (['csa'], "invalid choice: 'csa'"),
    'depth': (['csa-net', '--depth', '18'], "invalid choice: '18'"),
    'too small': (['csa-net', '--img-size', '16'], '--img-size 16 is less than 32'),
    'no size': (['csa-net', '--img-size', '0'], 'not a positive integer'),
    'suffix': (['csa-net', '--csv', 't.json'], '--csv t.json: the name must end in .csv'),
    'no folder': (['csa-net', '--json', 'absent/t.json'], 'absent is not a directory'),
    'without --time': (['csa-net', '--batch-size', '4'], '--batch-size is for the measurement of time'),
    'threads without --time': (['csa-net', '--threads', '1'], 'add --time'),
    'no turns': (['csa-net', '--time', '--turns', '0'], 'not a positive integer'),
    'device': (['csa-net', '--time', '--device', 'tpu'], "--device 'tpu' is not cpu, cuda or cuda:N"),
    'far device': (['csa-net', '--time', '--device', 'cuda:99'], 'CUDA devices; use cpu'),
    'option': (['csa-net', '--treads', '2'], 'did you mean --threads'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_input_is_one_line(case, tmp_path, monkeypatch, capsys):
    args, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    try:
        status = main(['table', *args])
    except SystemExit as e:
        status = e.code
    out, err = capsys.readouterr()
    assert status == 2
    assert words in err
    assert err.count('\n') == 1
    assert not out
    assert not list(tmp_path.iterdir())
