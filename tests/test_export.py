"""Every registered model through every way out of eager PyTorch: script, export, compile, ONNX."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from test_models import MODELS, image, wake_up
from test_models import close as close_to
from timm.models import model_entrypoint

import timm_attn

close = partial(close_to, tolerance=1e-4)


@pytest.fixture
def model_and_image(request):
    model = wake_up(timm.create_model(request.param, exportable=True)).eval()
    x = image(request.param, 3)
    with torch.no_grad():
        return model, x, model(x)


SIZES = {n: sum(p.numel() for p in timm.create_model(n, device='meta').parameters()) for n in MODELS}
SMALLEST = {}
for _name in sorted(MODELS, key=SIZES.get, reverse=True):
    SMALLEST[model_entrypoint(_name).__module__] = _name

every_model = pytest.mark.parametrize('model_and_image', MODELS, indirect=True)


@pytest.mark.heavy
@every_model
def test_jit_script(model_and_image, tmp_path):
    model, x, expected = model_and_image
    torch.jit.script(model).save(tmp_path / 'model.pt')
    loaded = torch.jit.load(tmp_path / 'model.pt')
    with torch.no_grad():
        close(loaded(x), expected)
        close(loaded(x[:1]), expected[:1])


@pytest.mark.heavy
@every_model
def test_jit_trace(model_and_image):
    model, x, expected = model_and_image
    traced = torch.jit.trace(model, x)  # with gradients, as converters do; checked by a second trace without them
    with torch.no_grad():
        close(traced(x[:1]), expected[:1])


@pytest.mark.heavy
@every_model
def test_export(model_and_image):
    model, x, expected = model_and_image
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        close(program.module()(x[:1]), expected[:1])


@pytest.mark.heavy
@every_model
def test_compile_without_graph_breaks(model_and_image):
    model, x, expected = model_and_image
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        close(compiled(x), expected)
        close(compiled(x[:2]), expected[:2])


def compare_with_eager(model, x, layout, backend, tolerance=1e-7):
    """Values and gradients, in both layouts: no kernel may be chosen by other strides than those that arrive.

    In float64: sums in another order may move a value across the kink of an activation, and batch statistics of few
    pixels magnify what becomes of it.
    """
    model.to(memory_format=layout)
    x = x[:, :, :64, :64].contiguous(memory_format=layout)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        close(compiled(x), model(x))
    model.train().drop_rate = 0.0  # dropout would draw other numbers
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # both start from the same statistics
    results = []
    for forward in (compiled, model):
        model.zero_grad()
        y = forward(x)
        y.square().mean().backward()
        results.append({'value': y.detach(), **{key: p.grad for key, p in model.named_parameters()}})
    found, expected = results
    largest = max(grad.abs().max().item() for grad in expected.values())
    for key, value in expected.items():
        # of a bias before a batch norm only rounding is left
        allowed = tolerance * (value.abs().max().item() + 1e-2 * largest)
        assert (found[key] - value).abs().max().item() <= allowed, key


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    'layout', [pytest.param(torch.contiguous_format, marks=pytest.mark.slow), torch.channels_last], ids=str
)
@every_model
def test_compiled_equals_eager(model_and_image, layout):
    model, x, _ = model_and_image
    compare_with_eager(model.double(), x.double(), layout, 'aot_eager')


@pytest.mark.heavy
@every_model
def test_portable(model_and_image):
    """Operations of PyTorch only, for converters and for runtimes without Python."""
    model, x, expected = model_and_image
    program = torch.export.export(timm_attn.optimize(model, portable=True), (x,)).run_decompositions({})
    names = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert not any('timm_attn' in name or 'diagonal' in name or 'eye' in name for name in names)
    close(program.module()(x), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@every_model
def test_default_backend_equals_eager(model_and_image, layout):
    model, x, _ = model_and_image
    compare_with_eager(model.double(), x.double(), layout, 'inductor')


@pytest.mark.slow
@pytest.mark.heavy
@every_model
def test_compiled_training_step_under_autocast(model_and_image):
    model, x, _ = model_and_image
    compiled = torch.compile(model.train(), fullgraph=True, backend='aot_eager')
    with torch.autocast('cpu', torch.bfloat16):
        compiled(x[:, :, :64, :64]).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.heavy
@every_model
def test_onnx(model_and_image, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, x, expected = model_and_image
    batch = torch.export.Dim('batch', min=1, max=64)
    path = str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False)
    session = onnxruntime.InferenceSession(path)
    for n in (1, 2, 3):
        (out,) = session.run(None, {session.get_inputs()[0].name: x[:n].numpy()})
        np.testing.assert_allclose(out, expected[:n], rtol=1e-4, atol=1e-4 * expected.abs().max().item())
