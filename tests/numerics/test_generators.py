"""Generators that a job seeds: what they give is a function of their state, on every machine."""

from __future__ import annotations

import copy
import json
import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rules_support import exact, same
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import random_split

from tests.machines import MACHINES, run
from tests.numerics.draw_generators import DRAWS, X, drawn, made
from veritrain.errors import NumericsError, UnsupportedOperatorError
from veritrain.numerics import CPU, resolve
from veritrain.numerics.keys import generators
from veritrain.numerics.keys.stream import KeyStream
from veritrain.numerics.rules import Kind
from veritrain.numerics.rules.exact_mode import _refuse_foreign, _without_generator

VECTORS = Path(__file__).parents[2] / "vectors/numerics/random/generators.json"


@pytest.mark.parametrize("numerics", ["exact", "exact14", "logged"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_a_function_of_the_generators_state(name: str, numerics: str) -> None:
    draw = DRAWS[name]
    found: list[list[Tensor]] = []
    for step in (1, 2):
        with resolve(numerics).active(seed=step, purpose="step", step=step):
            torch.rand(step)  # the job's stream is another matter
            generator = made(7)
            first, state = draw(generator), generator.get_state()
            second = draw(generator)
            generator.set_state(state)
            same(draw(generator), second)
            found.append([first, second])
            other = draw(made(8))
    for one, two in zip(*found, strict=True):
        same(one, two)
    assert not torch.equal(found[0][0], found[0][1])
    assert not torch.equal(found[0][0], other)


@pytest.mark.parametrize("name", DRAWS)
def test_manual_seed_gives_what_a_generator_of_that_seed_gives(name: str) -> None:
    draw = DRAWS[name]
    with exact():
        want = [draw(made(2**40 + 9)) for _ in range(1)] + [torch.rand(3)]
    for step in (0, 3):
        with exact(step=step):
            torch.rand(step)
            torch.manual_seed(2**40 + 9)
            first = draw(None)
            if not name.startswith(("loader", "sampler")):  # which draw a seed of their own first
                same(first, want[0])
            later = torch.rand(3)
            torch.random.manual_seed(2**40 + 9)
            same(draw(torch.default_generator), draw(made(2**40 + 9)))
            torch.default_generator.manual_seed(2**40 + 9)
            same(draw(None), first)
            same(torch.rand(3), later)


def test_the_default_generator_is_the_jobs_stream() -> None:
    for name, draw in DRAWS.items():
        results = []
        for generator in (None, torch.default_generator):
            with exact():
                results.append(draw(generator))
        if name != "loader" and "sampler" not in name:
            same(*results)
    with exact():
        a, b = random_split(range(20), [15, 5])
    with exact():
        same(torch.tensor([*a.indices, *b.indices]), torch.randperm(20))


def test_a_stream_goes_on_where_a_seed_is_put_back() -> None:
    with exact():
        want = [torch.rand(3) for _ in range(4)]
    with exact():
        same(torch.rand(3), want[0])
        with torch.random.fork_rng():
            torch.manual_seed(1)
            seeded = torch.rand(3)
            torch.rand(7)
        same(torch.rand(3), want[1])
        state = torch.get_rng_state()
        torch.manual_seed(1)
        same(torch.rand(3), seeded)
        own = torch.get_rng_state()
        later = torch.rand(3)
        torch.random.set_rng_state(state)
        same(torch.rand(3), want[2])
        torch.set_rng_state(own)
        same(torch.rand(3), later)
        torch.set_rng_state(state)
        made(4).manual_seed(5)
        torch.rand(3)
        same(torch.rand(3), want[3])


def test_a_new_record_or_step_has_the_jobs_stream_again() -> None:
    with exact(step=1):
        want = torch.rand(3)
    with resolve("exact").active(seed=0, purpose="test", step=0) as scope:
        torch.manual_seed(1)
        torch.rand(3)
        scope.rekey(seed=0, purpose="test", step=1)
        same(torch.rand(3), want)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("seeded", [False, True])
def test_checkpointed_activations_draw_the_same_again(seeded: bool, reentrant: bool) -> None:
    def block(x: Tensor) -> Tensor:
        return F.dropout(F.dropout(x, 0.5).tanh(), 0.5)

    results: list[tuple[Tensor | None, ...]] = []
    for function in (block, lambda x: checkpoint(block, x, use_reentrant=reentrant)):
        with exact():
            if seeded:
                torch.manual_seed(3)
            x = X.clone().requires_grad_()
            y, later = function(x), torch.rand(3)
            y.sum().backward()
            results.append((y.detach(), x.grad, later, torch.rand(3)))
    same(*results)


def test_copies_of_a_generator_give_what_it_gives() -> None:
    with exact():
        generator = made(5)
        torch.rand(3, generator=generator)
        copies = [
            generator.clone_state(), copy.deepcopy(generator),
            pickle.loads(pickle.dumps(generator)),
            torch.Generator(),
        ]  # fmt: skip
        copies[3].set_state(generator.get_state())
        want = [torch.rand(3, generator=generator) for _ in range(2)]
        for made_so in copies:
            for one in want:
                same(torch.rand(3, generator=made_so), one)
    sent = pickle.loads(pickle.dumps(generator))  # within a step and after it alike
    with exact():
        same(torch.rand(3, generator=sent), torch.rand(3, generator=generator))


def test_a_generator_without_a_seed_has_pytorchs() -> None:
    with exact():
        same(
            torch.rand(3, generator=torch.Generator()),
            torch.rand(3, generator=made(67280421310721)),
        )


def test_one_operator_takes_two_words_whatever_it_draws() -> None:
    """Places in the Mersenne twister's sequence are those that numpy's gives."""
    twister = np.random.RandomState(11)
    with exact():
        generator = made(11)
        torch.randn(1000, generator=generator)
        torch.rand(0, generator=generator)
        torch.multinomial(torch.ones(9), 5, True, generator=generator)
    twister.randint(0, 2**32, 6, np.uint32)
    want = int(twister.randint(0, 2**32, dtype=np.uint32)) << 32
    want += int(twister.randint(0, 2**32, dtype=np.uint32))
    word = torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    assert int(word) % 2**64 == want


def test_keys_do_not_depend_on_threads_or_devices_of_tensors() -> None:
    with exact():
        want = torch.randn(50_000, generator=made(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with exact():
            same(torch.randn(50_000, generator=made(3)), want)
    finally:
        torch.set_num_threads(threads)


class Elsewhere(torch.Generator):
    """As one on a GPU, which only a GPU can have."""

    device = torch.device("cuda", 0)


def test_a_generator_on_another_device_is_refused() -> None:
    generator, rand = Elsewhere(), torch.ops.aten.rand.generator
    assert _without_generator((), {"generator": generator})[2] is None
    with pytest.raises(UnsupportedOperatorError, match="generator on cuda:0.*on the CPU"):
        _refuse_foreign(rand, Kind.RANDOM, [generator], CPU)


@pytest.mark.parametrize("state", [-1, 2**32, 2**53])
def test_a_stream_has_calls_of_32_bits(state: int) -> None:
    with exact(), pytest.raises(NumericsError, match="random call"):
        generators.set_state(state)


@pytest.mark.parametrize("state", [b"\1", bytes(9)])
def test_a_key_has_8_bytes(state: bytes) -> None:
    with exact(), pytest.raises(NumericsError, match="random key"), generators.resumed(state):
        pass


def test_an_operator_that_draws_nothing_is_given_no_key() -> None:
    with exact(), generators.resumed(b""):
        same(X * 2, X + X)
        with pytest.raises(ValueError, match="without a key"):
            torch.rand(3)


# Weights of samplers.

WEIGHTS = torch.tensor([1.0, 0.0, 3.0, 1e-300, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300, 5e-324])
def test_float64_weights_are_drawn_as_often_as_they_weigh(scale: float, replacement: bool) -> None:
    weights = WEIGHTS * scale if scale != 5e-324 else (WEIGHTS * 2**52).round() * scale
    with exact():
        if replacement:
            found = torch.multinomial(weights, 8000, True)
        else:
            found = torch.multinomial(weights.expand(8000, 5).contiguous(), 1)[:, 0]
    counts = torch.bincount(found, minlength=5)
    assert counts[[1, 3]].tolist() == [0, 0]
    for number, share in ((0, 1 / 8), (2, 3 / 8), (4, 4 / 8)):
        assert abs(int(counts[number]) / 8000 - share) < 0.03


def test_rows_of_float64_weights_are_drawn_apart() -> None:
    rows = torch.eye(4, dtype=torch.float64) * torch.tensor([[1e-3], [1.0], [7.0], [1e9]])
    with exact():
        found = torch.multinomial(rows, 6, True)
    assert found.tolist() == [[row] * 6 for row in range(4)]


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 0.0])
def test_weights_that_are_none_are_errors(bad: float) -> None:
    with exact(), pytest.raises(NumericsError, match="multinomial"):
        torch.multinomial(torch.tensor([bad, 0.0], dtype=torch.float64), 2, True)


# The same on every machine, and what the vectors say.


@pytest.mark.timeout(300)
def test_every_machine_draws_the_same() -> None:
    here = drawn()
    for machine in MACHINES[1::2]:
        assert run(machine, "tests.numerics.draw_generators").strip() == here


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text()), ids=lambda case: case["seed"])
def test_vectors(case: dict[str, Any]) -> None:
    generator = made(int(case["seed"], 16))
    with exact():
        for seed, keys, uniform in zip(case["K"], case["keys"], case["uniform24"], strict=True):
            state = generator.get_state()
            with generators.keys_of(generator):
                assert generators.state() == int(seed, 16).to_bytes(8, "little")
                stream = generators.stream_for_operator(KeyStream(0, "none", 0))
                assert [f"{stream.next_key():016x}" for _ in keys] == keys
            generator.set_state(state)
            found = torch.rand(len(uniform), generator=generator)
            assert [
                f"{bits & 0xFFFFFFFF:08x}" for bits in found.view(torch.int32).tolist()
            ] == uniform
        weights = torch.tensor([float.fromhex(w) for w in case["weights"]], dtype=torch.float64)
        replaced = torch.multinomial(weights, len(case["replaced"]), True, generator=generator)
        assert replaced.tolist() == case["replaced"]
        order = torch.multinomial(weights, len(case["order"]), generator=generator)
        assert order.tolist() == case["order"]


def test_the_vectors_are_what_the_generator_writes_today(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    script.write_text(VECTORS.with_name("generate.py").read_text())
    runpy.run_path(str(script), run_name="__main__")
    for name in ("cases.json", VECTORS.name):
        assert (tmp_path / name).read_bytes() == VECTORS.with_name(name).read_bytes()
