"""Exact numerics beside other parts of PyTorch and Python: the same bits as the plain form, or
refused."""

from __future__ import annotations

import _thread
import copy
import os
import pickle
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rules_support import exact, numbers, same
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import veritrain as vt
from tests.machines import MACHINES, ROOT, environment
from tests.zoo.small import Images, image_loss, perceptron
from veritrain.errors import JobError, UnsupportedOperatorError, VeritrainError
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step
from veritrain.numerics import resolve

IMAGES, LABELS = numbers(1, 4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
X = numbers(2, 5, 4)


def network() -> nn.Module:
    """Its parameters have the same values each time."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(72, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 10),
    )  # fmt: skip
    for i, parameter in enumerate(net.parameters()):
        parameter.data = numbers(i, *parameter.shape, scale=0.3)
    return net


def plain_loss(net):
    return F.cross_entropy(net(IMAGES), LABELS)


def results(net: nn.Module, loss=plain_loss) -> list[torch.Tensor]:
    """The loss and the gradient of every parameter, under exact numerics."""
    with exact():
        value = loss(net)
        value.backward()
    return [value.detach(), *(parameter.grad for parameter in net.parameters())]


# Ways of writing the same computation.


def autocast(dtype: torch.dtype, enabled: bool = True):
    def loss(net):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            return F.cross_entropy(net(IMAGES).float(), LABELS)

    return loss


def scaled(net, enabled: bool = False):
    """A disabled scaler scales by nothing."""
    return torch.amp.GradScaler("cpu", enabled=enabled).scale(plain_loss(net))


def checkpointed(net):
    return F.cross_entropy(checkpoint(net, IMAGES, use_reentrant=False), LABELS)


def hooked(net):
    """Hooks of modules and of gradients."""
    for module in net:
        module.register_forward_hook(lambda module, inputs, output: output * 2)
        module.register_forward_hook(lambda module, inputs, output: output / 2)
        module.register_full_backward_hook(lambda module, inputs, outputs: inputs)
    for parameter in net.parameters():
        parameter.register_hook(lambda grad: grad * 4)
        parameter.register_hook(lambda grad: grad / 4)
    return plain_loss(net)


def functional(net):
    parameters = dict(net.named_parameters())
    return F.cross_entropy(torch.func.functional_call(net, parameters, (IMAGES,)), LABELS)


def compiled_function(net):
    return torch.compile(plain_loss)(net)


def on_the_way(net):
    """Evaluation in inference mode beside the training leaves no trace."""
    with torch.inference_mode():
        teacher = copy.deepcopy(net).eval()
        assert not teacher(IMAGES).requires_grad
    return plain_loss(net)


FORMS = {
    "autocast off": (lambda net: net, autocast(torch.bfloat16, enabled=False)),
    "scaler off": (lambda net: net, scaled),
    "compiled model": (torch.compile, plain_loss),
    "compiled function": (lambda net: net, compiled_function),
    "DataParallel": (nn.DataParallel, plain_loss),
    "script": (torch.jit.script, plain_loss),
    "checkpoint": (lambda net: net, checkpointed),
    "hooks": (lambda net: net, hooked),
    "functional_call": (lambda net: net, functional),
    "channels last": (lambda net: net.to(memory_format=torch.channels_last), plain_loss),
    "functionalised": (lambda net: net, torch.func.functionalize(plain_loss)),
    "exported before": (lambda net: torch.export.export(net, (IMAGES,)).module(), plain_loss),
    "inference beside": (lambda net: net, on_the_way),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", FORMS)
def test_another_form_has_the_same_bits(name):
    wrap, loss = FORMS[name]
    same(results(wrap(network()), loss), results(network()))


def test_compiled_where_nothing_loaded_the_compiler_before():
    """`torch.compile` loads it inside the step; what it compiles still runs plain."""
    words = [sys.executable, "-m", "tests.numerics.compile_late"]
    machine = environment(MACHINES[0])
    done = subprocess.run(words, env=machine, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "equal"]


def gated(a, b):
    return ((a * b + a).sigmoid() * b).tanh().sum()


def divided(a, b):
    return (a / (a * a + 1.7) + b / 3.0).sum()


def raised(a, b):
    return ((a * a + 1).pow(1.5) * b).sum()


def hard(a, b):
    return (F.hardswish(a) + F.hardsigmoid(a * b)).sum()


def smooth(a, b):
    return (torch.rsqrt(a * a + 1) * b.erf()).sum()


def usual(a, b):
    return (F.layer_norm(a, [64]) * F.gelu(b) + torch.lerp(a, b, 0.3).logsumexp(0)).sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("formula", [gated, divided, raised, hard, smooth, usual])
def test_scripted_functions_stay_exact_when_they_are_warm(formula):
    def gradient(function):
        a, b = numbers(1, 64).requires_grad_(), numbers(2, 64).requires_grad_()
        return [function(a, b).detach(), *torch.autograd.grad(function(a, b), (a, b))]

    warm, cold = torch.jit.script(formula), torch.jit.script(formula)
    for _ in range(4):  # the profiling executor specialises after some calls
        gradient(warm)
    with exact():
        want = gradient(formula)
        for _ in range(4):
            same(gradient(warm), want)
            same(gradient(cold), want)
    assert torch._C._get_graph_executor_optimize()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_traced_models_are_exact_or_refused():
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    traced = torch.jit.trace(layers, X)
    with exact():
        same(traced(X), layers(X))
        same(torch.jit.trace(layers, X)(X), layers(X))
        with pytest.raises(
            UnsupportedOperatorError, match=r"torch\.jit\.trace.*torch\.jit\.script"
        ):
            torch.jit.trace(nn.Conv2d(3, 2, 3), IMAGES)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_traced_convolutions_have_the_bits_of_plain_ones():
    """A trace records `_convolution`, whose gradient is that of `convolution`."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, bias=False), nn.Flatten(0, 1),
        nn.ConvTranspose1d(4, 6, 2, groups=2, stride=3, output_padding=1),
    )  # fmt: skip
    traced = torch.jit.trace(layers, IMAGES)

    def step(net):
        image = IMAGES.clone().requires_grad_()
        y = net(image)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (image, *layers.parameters()))]

    with exact():
        want = step(layers)
        for _ in range(4):  # the profiling executor specialises after some calls
            same(step(traced), want)


def test_vmap_and_per_sample_gradients():
    weight, batch = numbers(1, 4, 3), numbers(2, 6, 5, 4)

    def loss(weight, x):
        return (x @ weight).tanh().sum(0).softmax(0).square().sum()

    with exact():
        got = torch.vmap(torch.func.grad(loss), (None, 0))(weight, batch)
        values = torch.vmap(loss, (None, 0))(weight, batch)
        want = torch.stack([torch.func.grad(loss)(weight, x) for x in batch])
        same(values, torch.stack([loss(weight, x) for x in batch]))
    same(got, want)


def test_gradients_of_gradients_are_near_float64():
    """A gradient penalty, through every kind of layer."""

    def penalty(net, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(x).tanh().sum(), x, create_graph=True)
        grad.square().sum().backward()
        return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    with exact():
        got = penalty(network(), IMAGES)
    want = penalty(network().double(), IMAGES.double())
    assert len(got) == len(want) > 3
    for a, b in zip(got, want, strict=True):
        assert float((a - b).abs().max()) <= 3e-4 * max(1.0, float(b.abs().max()))


def test_inference_mode_is_the_same_as_no_grad():
    net = network().eval()
    with exact():
        with torch.no_grad():
            want = net(IMAGES)
        with torch.inference_mode():
            same(net(IMAGES), want)
            with pytest.raises(UnsupportedOperatorError, match="fft"):
                torch.fft.fft(X)


def test_operators_in_threads_of_the_job_are_refused():
    with exact(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: 1 + 1).result() == 2
        with pytest.raises(UnsupportedOperatorError, match=r"sum.*thread that the job started"):
            pool.submit(X.sum).result()
        with exact(1):  # contexts nest
            pass
        with pytest.raises(UnsupportedOperatorError, match="thread"):
            pool.submit(torch.rand, 3).result()


def test_operators_in_bare_threads_of_the_job_are_refused():
    found, done = [], threading.Event()

    def compute(values, extra=0):
        try:
            found.append(values.sum())
        except UnsupportedOperatorError as error:
            found.append(str(error))
        done.set()

    with exact():
        _thread.start_new_thread(compute, (X,), {"extra": 1})
        assert done.wait(60)
    assert "thread that the job started" in found[0]
    assert _thread.start_new_thread.__module__ == "_thread"


def test_generators_of_torch_are_what_they_are_outside():
    with exact():
        made = torch.Generator().manual_seed(3)
        assert isinstance(made, torch.Generator)
        assert isinstance(torch.default_generator, torch.Generator)
    assert isinstance(made, torch.Generator)
    want = torch.rand(3, generator=torch.Generator().manual_seed(3))
    same(torch.rand(3, generator=made), want)


def test_a_thread_started_within_a_step_computes_again_after_it():
    with exact():
        pool = ThreadPoolExecutor(1)
        pool.submit(int).result()
    with pool:
        assert pool.submit(X.sum).result() == X.sum()
        with exact(), pytest.raises(UnsupportedOperatorError, match="thread"):
            pool.submit(X.sum).result()


def sgd_by_scaler():
    net = network()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(plain_loss(net)).backward()
    scaler.step(torch.optim.SGD(net.parameters(), lr=0.1))


def moved(dtype: torch.dtype):
    return lambda: F.cross_entropy(network().to(dtype)(IMAGES.to(dtype)).float(), LABELS)


def recorded(mode: str):
    return lambda: make_fx(torch.exp, tracing_mode=mode)(X)(X)


def faked():
    with FakeTensorMode():
        return torch.ones(2).exp()


REFUSED = {
    "make_fx": (recorded("real"), "make_fx.*use the model itself"),
    "make_fx fake": (recorded("fake"), "make_fx.*use the model itself"),
    "fake tensors": (faked, "FakeTensorMode"),
    "export": (lambda: torch.export.export(nn.Linear(4, 4), (X,)), "torch.export.*before"),
    "autocast bfloat16": (lambda: autocast(torch.bfloat16)(network()),
        r"bfloat16.*\.float\(\).*autocast"),
    "autocast float16": (lambda: autocast(torch.float16)(network()),
        r"float16.*\.float\(\).*autocast"),
    "scaler": (sgd_by_scaler, "GradScaler with enabled=False"),
    "half": (moved(torch.float16), "convolution.*float16"),
    "bfloat16": (moved(torch.bfloat16), "convolution.*bfloat16"),
    "double": (moved(torch.float64), "convolution on torch.float64"),
    "double linear": (lambda: nn.Linear(4, 4).double()(X.double()), "mm on torch.float64"),
    "complex": (lambda: nn.Linear(4, 4).to(torch.complex64)(X + 0j), "complex64"),
    "forward mode": (lambda: torch.func.jvp(torch.nn.functional.glu, (X,), (X,)),
        "glu_jvp.*no rule"),
    "quantised": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "quantize_per_tensor"),
    "cond": (lambda: torch.cond(X.sum() > 0, torch.sin, torch.cos, (X,)), "operator cond.*no rule"),
    "nested": (lambda: torch.nested.nested_tensor([X, X]), "nested"),
    "mkldnn": (lambda: X.to_mkldnn(), "to_mkldnn"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_a_remedy(name):
    function, message = REFUSED[name]
    with exact(), pytest.raises(UnsupportedOperatorError, match=message):
        function()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device that is not the CPU is there")
def test_cuda_graphs_need_a_device_that_exact_does_not_cover():
    with exact(), pytest.raises(RuntimeError):
        torch.cuda.make_graphed_callables(network(), (IMAGES,))


# Randomness: keyed, or refused.

KEYED = {
    "torch.rand": lambda: torch.rand(3).tolist(),
    "torch.randn": lambda: torch.randn(3).tolist(),
    "torch.randperm": lambda: torch.randperm(5).tolist(),
    "torch.manual_seed": lambda: (torch.manual_seed(5), torch.rand(3).tolist())[1],
    "random": lambda: (random.random(), random.randrange(99), random.sample(range(99), 3)),
    "random.gauss": lambda: (random.gauss(0, 1), random.expovariate(1.0)),
    "random seeded": lambda: (random.seed(3), random.random())[1],
    "Random seeded": lambda: random.Random(4).random(),
    "numpy": lambda: (np.random.rand(), np.random.randint(99), np.random.permutation(5).tolist()),
    "numpy seeded": lambda: (np.random.seed(6), np.random.rand())[1],
    "default_rng seeded": lambda: np.random.default_rng(7).random(),
    "RandomState seeded": lambda: np.random.RandomState(7).rand(),
    "RandomState of several": lambda: np.random.RandomState([1, 2]).randint(99, size=3).tolist(),
    "Philox seeded": lambda: np.random.Generator(np.random.Philox(3)).random(),
}  # fmt: skip


@pytest.mark.parametrize("profile", ["exact", "native"])
@pytest.mark.parametrize("name", KEYED)
def test_random_numbers_are_the_same_in_every_run(name, profile):
    seen = []
    for _ in range(2):
        random.seed()
        np.random.seed()
        torch.seed()
        with resolve(profile).active(seed=1, purpose="step", step=2):
            seen.append(KEYED[name]())
    assert seen[0] == seen[1]


ENTROPY = {
    "default_rng": lambda: np.random.default_rng(),
    "SeedSequence": lambda: np.random.SeedSequence(),
    "RandomState": lambda: np.random.RandomState(),
    "RandomState None": lambda: np.random.RandomState(None),
    "RandomState.seed": lambda: np.random.RandomState(7).seed(),
    "PCG64": lambda: np.random.PCG64(),
    "Philox": lambda: np.random.Philox(),
    "numpy.random.seed": lambda: np.random.seed(),
    "Random": lambda: random.Random(),
    "random.seed": lambda: random.seed(),
    "random.seed None": lambda: random.seed(None),
    "Random.seed": lambda: random.Random(1).seed(),
    "SystemRandom": lambda: random.SystemRandom().random(),
    "secrets": lambda: secrets.randbelow(9),
    "token": lambda: secrets.token_hex(),
    "urandom": lambda: os.urandom(4),
    "uuid4": lambda: uuid.uuid4(),
    "torch.seed": lambda: torch.seed(),
    "Generator.seed": lambda: torch.Generator().seed(),
    "getrandom": lambda: os.getrandom(4),
}  # fmt: skip


@pytest.mark.parametrize("profile", ["exact", "native"])
@pytest.mark.parametrize("name", ENTROPY)
def test_entropy_of_the_system_is_refused(name, profile):
    scope = resolve(profile).active(seed=1, purpose="step", step=2)
    with scope, pytest.raises(JobError, match="entropy.*give a seed"):
        ENTROPY[name]()
    ENTROPY[name]()  # free again outside


def test_a_seeded_generator_of_numpys_is_the_one_that_it_is_outside():
    with exact():
        inside = np.random.RandomState(7)
    assert isinstance(inside, np.random.RandomState)
    copies = [inside, copy.deepcopy(inside), pickle.loads(pickle.dumps(inside))]
    assert inside.get_state()[0] == "MT19937"
    copies.append(np.random.RandomState())
    copies[-1].set_state(inside.get_state())
    want = np.random.RandomState(7).normal(size=5).tolist()
    assert [generator.normal(size=5).tolist() for generator in copies] == [want] * 4


def test_entropy_is_free_to_other_threads_and_to_names_of_files():
    found = []
    with exact():
        thread = threading.Thread(target=lambda: found.append(uuid.uuid4()))
        thread.start()
        thread.join()
        with tempfile.TemporaryFile():
            pass
    assert found


def test_entropy_in_a_job_is_an_error_of_its_step():
    job = vt.Job(
        model=perceptron, dataset=Images(64), batch_size=8, steps=2, seed=1,
        loss=lambda model, batch: image_loss(model, batch) * np.random.default_rng().random(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip
    program, batches = Program.build(job), Batches(job)
    with pytest.raises(VeritrainError, match="entropy"):
        run_step(program, 1, batches[1])


# Writing where an operator reads: it reads first, whichever thread writes.

WIDE, LONG = numbers(5, 64, 2049), numbers(6, 300_000)


def shifted(x):
    """Two parts of `x` that overlap, so that PyTorch cannot tell: to write to, and to read."""
    part = x[:, :1000]
    return part[1:], part[:-1]


def added_to_list(x):
    torch._foreach_add_([shifted(x)[0]], [shifted(x)[1]])


# name: in place, and the same with the operand read first
OVERLAPPING = {
    "add_": (lambda x: shifted(x)[0].add_(shifted(x)[1]), lambda to, read: to + read),
    "mul_": (lambda x: shifted(x)[0].mul_(shifted(x)[1]), lambda to, read: to * read),
    "copy_": (lambda x: shifted(x)[0].copy_(shifted(x)[1]), lambda to, read: read),
    "clamp_": (
        lambda x: shifted(x)[0].clamp_(min=shifted(x)[1]), lambda to, read: to.clamp(min=read)
    ),
    "lerp_": (
        lambda x: shifted(x)[0].lerp_(shifted(x)[1], 0.3), lambda to, read: to.lerp(read, 0.3)
    ),
    "foreach": (added_to_list, lambda to, read: to + read),
    "out": (
        lambda x: torch.div(shifted(x)[1], shifted(x)[1], out=shifted(x)[0]),
        lambda to, read: read / read,
    ),
    "out of where": (
        lambda x: torch.where(shifted(x)[1] > 0, *shifted(x)[::-1], out=shifted(x)[0]),
        lambda to, read: torch.where(read > 0, read, to),
    ),
    "keyword": (
        lambda x: torch.ops.aten.add_.Tensor(shifted(x)[0], other=shifted(x)[1]),
        lambda to, read: to + read,
    ),
}  # fmt: skip


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", OVERLAPPING)
def test_an_operand_that_shares_memory_is_read_before_it_is_written(name):
    in_place, plain = OVERLAPPING[name]
    got, want = WIDE.clone(), WIDE.clone()
    with exact():
        in_place(got)
        to, read = shifted(WIDE)
        shifted(want)[0].copy_(plain(to, read))
    same(got, want)


@pytest.mark.usefixtures("threads")
def test_views_of_one_tensor_that_do_not_overlap_are_written_as_ever():
    x = WIDE[:, :64].clone()
    with exact():
        x[:, ::2] += x[:, 1::2]
        x[:32] -= x[32:]
        x.add_(x)
        square = x.T[:, :64]
        x.copy_(square)
    y = WIDE[:, :64].clone()
    y[:, ::2] = y[:, ::2] + y[:, 1::2]
    y[:32] = y[:32] - y[32:]
    same(x, (y + y).T.contiguous())


@pytest.mark.parametrize(
    "write",
    [
        lambda: LONG.clone().unfold(0, 3, 1).mul_(1.01),
        lambda: LONG[:1].clone().expand(9).add_(1.0),
        lambda: torch.exp(LONG[:10], out=LONG[:1].clone().expand(10)),
        lambda: LONG.clone().unfold(0, 3, 1).normal_(),
    ],
)
def test_a_tensor_that_overlaps_itself_is_not_written(write):
    with exact(), pytest.raises(UnsupportedOperatorError, match=r"overlaps itself.*\.clone\(\)"):
        write()


def test_one_value_may_be_written_many_times_to_one_place():
    with exact():
        assert LONG[:1].clone().expand(9).zero_().tolist() == [0] * 9
        assert LONG.clone().unfold(0, 3, 1).fill_(2.0)[0].tolist() == [2, 2, 2]


# Optimisers: the flags do not matter, and powers are exact.

OPTIMISERS = {
    "SGD": ({"momentum": 0.9, "nesterov": True}, True), "Adam": ({}, True),
    "AdamW": ({"amsgrad": True}, True),
    "Adagrad": ({"lr_decay": 0.1}, True), "Adadelta": ({}, False),
    "RMSprop": ({"centered": True}, False),
    "Rprop": ({}, False), "NAdam": ({"decoupled_weight_decay": True}, False), "RAdam": ({}, False),
    "Adamax": ({}, False), "ASGD": ({}, False),
}  # fmt: skip


def trained(kind, **options) -> list[torch.Tensor]:
    job = vt.Job(
        model=perceptron, dataset=Images(64), batch_size=8, steps=7, seed=1, loss=image_loss,
        optimizer=lambda model: kind(model.parameters(), lr=0.01, **options),
    )  # fmt: skip
    program, batches = Program.build(job), Batches(job)
    for step in range(1, job.steps + 1):
        run_step(program, step, batches[step])
    for group in program.optimizer.param_groups:
        assert all(type(v) is float for v in group.values() if isinstance(v, float))
    return [parameter.detach() for parameter in program.model.parameters()]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_flags_of_optimisers_change_nothing(name):
    options, fused = OPTIMISERS[name]
    make = partial(trained, getattr(torch.optim, name), **options)
    want = make()
    same(make(foreach=True), want)
    same(make(foreach=False), want)
    if fused:
        same(make(fused=True), want)


def test_adafactor_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="Adafactor.*use Adam"):
        trained(torch.optim.Adafactor)
