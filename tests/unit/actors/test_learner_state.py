"""What a checkpoint of the learner is made of: tensor files, random state, the model's identity, shares."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from funicular.actors.learner_state import Section, share_out
from funicular.actors.model_identity import model_digest
from funicular.actors.parameter_files import VALUE, file_of, name_of
from funicular.actors.random_state import random_state, seed_from, set_random_state
from funicular.actors.tensor_file import TensorFile, TensorFileError, TensorFileWriter, save_tensors

CPU = torch.device("cpu")


def tensors() -> dict[str, torch.Tensor]:
    return {
        "matrix": torch.randn(3, 5),
        "half": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "ints": torch.arange(6).view(2, 3),
        "flags": torch.tensor([True, False]),
    }


def test_any_reader_of_safetensors_reads_what_was_written_and_we_read_what_others_write(tmp_path: Path) -> None:
    written = tensors()
    save_tensors(tmp_path / "ours", written)
    save_file(written, tmp_path / "theirs")
    theirs = load_file(tmp_path / "ours")
    for path in ("ours", "theirs"):
        file = TensorFile(tmp_path / path)
        assert sorted(file.names()) == sorted(written)
        for name, tensor in written.items():
            assert torch.equal(theirs[name], tensor)
            assert torch.equal(file.tensor(name), tensor)
            assert file.tensor(name).dtype == tensor.dtype


def test_a_tensor_is_written_and_read_in_pieces(tmp_path: Path) -> None:
    whole = torch.randn(4, 25)
    with TensorFileWriter(tmp_path / "t", {"a": (torch.float32, (4, 25)), "b": (torch.float32, (2,))}) as file:
        file.write(whole.view(-1)[:37])
        file.write(whole.view(-1)[37:])
        file.write(torch.ones(2))
    assert torch.equal(load_file(tmp_path / "t")["a"], whole)
    assert torch.equal(TensorFile(tmp_path / "t").read("a", 30, 12), whole.view(-1)[30:42])


def test_what_was_announced_must_be_written_and_a_torn_file_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(TensorFileError, match="8 bytes of the announced tensors were not written"),
        TensorFileWriter(tmp_path / "t", {"a": (torch.float32, (4,))}) as file,
    ):
        file.write(torch.ones(2))
    with pytest.raises(TensorFileError, match=r"/t: .*the file is torn"):
        TensorFile(tmp_path / "t")
    (tmp_path / "t").write_bytes(b"\x05")
    with pytest.raises(TensorFileError, match="cannot be read as safetensors"):
        TensorFile(tmp_path / "t")
    with pytest.raises(TensorFileError, match="none: cannot be read"):
        TensorFile(tmp_path / "none")


def draw() -> list[float]:
    return [
        *torch.rand(3).tolist(),
        *torch.randn(1).tolist(),
        *np.random.normal(size=3),
        random.gauss(),
        random.random(),
    ]


def test_random_state_goes_on_where_it_was_taken(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        draw()  # an odd number of normal deviates: numpy and Python keep the next one
        save_tensors(tmp_path / "t", random_state(CPU))
        expected = draw()
        draw()
        file = TensorFile(tmp_path / "t")
        set_random_state({name: file.tensor(name) for name in file.names()}, CPU)
        assert draw() == expected


def test_ranks_that_a_run_did_not_have_get_a_state_of_their_own_that_is_always_the_same() -> None:
    with torch.random.fork_rng():
        state = random_state(CPU)
        found = []
        for rank in (2, 3, 2):
            seed_from(state, rank)
            found.append(draw())
        assert found[0] == found[2]
        assert found[0] != found[1]


def test_a_model_is_known_by_its_tensors_however_they_are_spread_over_files(tmp_path: Path) -> None:
    model = {"a": torch.randn(40, 40), "b": torch.randn(3)}
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    save_file(model, tmp_path / "one" / "model.safetensors")
    save_file({"b": model["b"]}, tmp_path / "two" / "model-1.safetensors")
    save_file({"a": model["a"]}, tmp_path / "two" / "model-2.safetensors")
    save_file({**model, "b": model["b"] + 1e-6}, tmp_path / "other" / "model.safetensors")
    one, two, other = (model_digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one != other


def test_files_are_shared_out_evenly_and_always_the_same() -> None:
    sizes = {f"p{i}": size for i, size in enumerate([100, 30, 30, 30, 5, 5])}
    owners = share_out(sizes, 2)
    assert owners == share_out(dict(reversed(sizes.items())), 2)
    loads = [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(2)]
    assert sorted(loads) == [100, 100]


def test_a_section_reads_its_tensors_by_name_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    names = ["model.layers.0.weight", "odd/name"]
    for index, name in enumerate(names):
        save_tensors(file_of(tmp_path, "reference", name), {VALUE: torch.full((2,), float(index))})
    section = Section(tmp_path, "reference")
    assert sorted(section) == sorted(names)
    assert section["odd/name"].tolist() == [1.0, 1.0]
    assert len(Section(tmp_path, "none")) == 0
    assert name_of(file_of(tmp_path, "reference", "odd/name")) == "odd/name"
