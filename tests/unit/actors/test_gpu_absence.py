"""Tensors that leave and come back, on a CPU: views, gradients, storages of several tensors; and no room for them."""

from __future__ import annotations

import pytest
import torch

from funicular.actors import learner
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.errors import RunStopped
from funicular.actors.gpu_absence import Absence

CPU = torch.device("cpu")


def test_views_gradients_and_states_are_what_they_were() -> None:
    flat = torch.arange(10.0)
    first, second = flat[:4].view(2, 2), flat[4:]
    parameter = torch.nn.Parameter(second)
    (parameter * 2).sum().backward()
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    optimizer.step()
    expected, state = flat.clone(), {name: t.clone() for name, t in optimizer.state[parameter].items()}
    expected_list, state_list = expected.tolist(), {name: t.tolist() for name, t in state.items()}
    gradient = parameter.grad
    assert gradient is not None

    absence = Absence()
    assert absence.leave(CPU) > 0
    for tensor in (flat, first, second, parameter, gradient, *optimizer.state[parameter].values()):
        assert tensor.untyped_storage().nbytes() == 0
    absence.come_back()
    assert flat.tolist() == expected_list
    assert parameter.tolist() == expected_list[4:]
    assert {name: t.tolist() for name, t in optimizer.state[parameter].items()} == state_list
    flat[0] = 7.0
    assert first[0, 0] == 7.0
    assert parameter.data_ptr() == flat[4:].data_ptr()


def test_what_others_own_stays() -> None:
    owned = bytearray(16)
    tensor = torch.frombuffer(owned, dtype=torch.uint8)
    absence = Absence()
    absence.leave(CPU)
    assert tensor.untyped_storage().nbytes() == 16
    absence.come_back()


class FullGpu(Absence):
    """Has no room the first times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def come_back(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("times", "comes"), [(2, True), (1000, False)])
def test_a_rank_waits_for_room_and_says_what_to_do_if_there_is_none(
    monkeypatch: pytest.MonkeyPatch, times: int, comes: bool
) -> None:
    rank = learner.LearnerRank(0, 1, LearnerConfig(), AlgorithmConfig(), temperature=1.0, model_folder=".", seed=0)
    rank._absence = FullGpu(times)
    now = [0.0]
    monkeypatch.setattr(learner.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(learner.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    if comes:
        rank.return_to_gpu()
    else:
        with pytest.raises(RunStopped, match=r"no room on its GPU for what it keeps, 30 s .* cluster\.colocate=false"):
            rank.return_to_gpu()
