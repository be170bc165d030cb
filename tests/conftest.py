import os
from collections import defaultdict

os.environ['HF_HUB_OFFLINE'] = '1'  # no test may depend on the network; read when huggingface_hub is imported
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ['OMP_NUM_THREADS'] = '1'  # several workers share the cores; read when torch is imported

import pytest
import torch
from costs import EXHAUSTIVE, FEW, SLOW, SOME

import timm_attn  # noqa: F401  registers the models

# torch.jit finds operators by the addresses of objects. Objects of another test may take the place of those that torch
# deletes, and its module no longer compiles: torch replaces operators for quantization when inductor is imported.
_operators: list[object] = []
_register = torch.jit._builtins._register_builtin


def _register_and_keep(operator, name):
    _operators.append(operator)
    _register(operator, name)


torch.jit._builtins._register_builtin = _register_and_keep


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.hookimpl(tryfirst=True)  # before marks are selected by -m
def pytest_collection_modifyitems(items):
    """Networks that show little more than others are left to the heavier suites, but for tests without computation."""
    for item in items:
        if not hasattr(item, 'callspec') or item.get_closest_marker('counts'):
            continue
        values = (getattr(value, 'arch', value) for value in item.callspec.params.values())  # of a weight its network
        names = {value.partition('.')[0] for value in values if isinstance(value, str)}
        if item.get_closest_marker('heavy') and not names & FEW:
            item.add_marker(pytest.mark.slow if names & SOME else pytest.mark.exhaustive)
        elif names & EXHAUSTIVE:
            item.add_marker(pytest.mark.exhaustive)
        elif names & SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    # names of files that are no UTF-8, which processes cannot tell each other
    report.sections = [tuple(t.encode(errors='backslashreplace').decode() for t in pair) for pair in report.sections]
    return report


def pytest_terminal_summary(terminalreporter):
    """The table of the attack, whose cases its fixture counts."""
    areas = defaultdict(lambda: [0, 0])
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, 'when', '') != 'teardown':
                continue
            for key, value in report.user_properties:
                if key == 'attack':
                    area, tried, wrong = value
                    areas[area][0] += tried
                    areas[area][1] += wrong
    if areas:
        terminalreporter.section('attack')
        rows = [('area', 'tried', 'wrong'), *((area, *map(str, n)) for area, n in sorted(areas.items()))]
        rows.append(('all', *(str(sum(n[i] for n in areas.values())) for i in (0, 1))))
        for area, tried, wrong in rows:
            terminalreporter.write_line(f'{area:24}{tried:>8}{wrong:>8}')
