import os

os.environ['HF_HUB_OFFLINE'] = '1'  # no test may depend on the network; read when huggingface_hub is imported
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ['OMP_NUM_THREADS'] = '1'  # several workers share the cores; read when torch is imported

import pytest
import torch

import timm_attn  # noqa: F401  registers the models


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    # names of files that are no UTF-8, which processes cannot tell each other
    report.sections = [tuple(t.encode(errors='backslashreplace').decode() for t in pair) for pair in report.sections]
    return report
