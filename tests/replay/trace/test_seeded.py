"""Disputes over steps that seed their own random numbers: traces say which, and liars about them
lose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import veritrain as vt
from tests.replay.trace.court import Liar, Scene, decide, read
from tests.replay.trace.test_judge import change_somewhere
from tests.trace_digests import second_step
from veritrain.encoding import encode
from veritrain.job.state import capture, restore
from veritrain.job.step import Program
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.entry_bodies import OperatorBody, read_body
from veritrain.replay.trace.recompute import recompute
from veritrain.replay.trace.state_openings import StateBefore, state_opening
from veritrain.replay.trace.structure import UNKNOWN, next_structure, structure_of
from veritrain.replay.trace.tracer import Tracer, trace
from veritrain.transcript import state_entries, state_root

STEP = 3
SIDES = ("trainer", "challenger")


class Seeded:
    """Record i is made of the seed i."""

    def __init__(self, shift: float = 0.0) -> None:
        self._shift = shift

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(index)
        return torch.rand(6) + self._shift, index % 3


class Noisy(nn.Module):
    """Draws from the job's stream, from a generator of its own, and from the default one that it
    seeds."""

    def __init__(self, own: int = 4, default: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self._own, self._default = own, default

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._own)
        x = F.dropout(x, 0.2) + torch.randn(x.shape, generator=generator) / 8
        with torch.random.fork_rng():
            torch.manual_seed(self._default)
            x = F.dropout(x, 0.1) * 1.25
        x = x + torch.rand(6) / 4
        torch.manual_seed(self._default)
        return self.layer(x + torch.rand(6) / 4) + torch.multinomial(torch.ones(9), 3, True) / 8


def job(own: int = 4, default: int = 5, dataset: Seeded | None = None) -> vt.Job:
    return vt.Job(
        model=lambda: Noisy(own, default), dataset=dataset or Seeded(), batch_size=8, steps=4,
        seed=1,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), checkpoint_every=2,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.of(job(), tmp_path_factory.mktemp("seeded") / "run")


def test_every_entry_follows_from_the_job_and_can_be_computed_again() -> None:
    made, batches, before = second_step(job())
    state = {name: tensor.clone() for name, tensor in capture(made).items()}

    def traced(kept: int | None = None) -> Tracer:
        program = Program.build(job())
        restore(program, state)
        return trace(program, before, batches[2], None, kept)

    bodies = [read_body(entry) for entry in read(traced().entries)]
    kinds: set[str] = set()
    tensors = state_entries(state)
    opened = StateBefore.opened(state_opening(tensors, state), state_root(tensors))
    for index, body in enumerate(bodies):
        if not isinstance(body, OperatorBody):
            continue
        draw = body.call.draw
        kinds.add(f"{type(draw).__name__} {len(draw) if isinstance(draw, bytes) else ''}")
        programs = [Program.build(job()) for _ in UNKNOWN]
        for program, unknown in zip(programs, UNKNOWN, strict=True):
            opened.restore(program, unknown)
        found = next_structure(programs, 2, batches[2], bodies[:index])
        assert encode(found.structure) == encode(structure_of(body))
        again = recompute(Arithmetic.of(job()), 2, body, traced(index).operands, None)
        assert again is not None
        assert body.effects is not None
        assert encode(again.to_value()) == encode(body.effects.to_value())
    assert kinds == {"int ", "bytes 0", "bytes 8"}


LIES = {
    "own generator": lambda: job(own=6),
    "default generator": lambda: job(default=6),
    "the job's seed": lambda: replace(job(), seed=2),
    "records": lambda: job(dataset=Seeded(0.5)),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lie", LIES)
def test_another_seed_loses(scene: Scene, lie: str, side: str) -> None:
    verdict = decide(scene, STEP, **{side: Liar(scene, STEP, LIES[lie]())})
    assert verdict.loser.value == side, verdict.reason


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("another", [0, 7, 2**40, b"", bytes(8), b"x"], ids=str)
@pytest.mark.parametrize("field", ["draw", "drawn"])
def test_a_lie_about_what_was_drawn_loses(
    scene: Scene, field: str, another: int | bytes, side: str
) -> None:
    for place in range(3):

        def change(bodies, place=place):  # fmt: skip
            drawing = [
                b for b in bodies if isinstance(b.get("draw"), bytes) and b["draw"] != another
            ]
            drawing[place * (len(drawing) - 1) // 2][field] = another
            return bodies

        verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=change)})
        assert verdict.loser.value == side, verdict.reason


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(12))
def test_a_change_anywhere_in_a_trace_is_found(scene: Scene, seed: int, side: str) -> None:
    path: list[object] = []
    liar = Liar(scene, STEP, change=change_somewhere(seed, path))
    verdict = decide(scene, STEP, **{side: liar})
    assert verdict.loser.value == side, (path, verdict.reason)
