"""Weights from files: what fits is loaded, what does not is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flsparse.nets.weights import load_weights


def net(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs))


def same(a: nn.Module, b: nn.Module, prefix: str = "") -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for (name, one), other in pairs if name.startswith(prefix))


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "ckpt"])
def test_a_state_dict_is_read_from_either_format(tmp_path: Path, suffix: str) -> None:
    saved, file = net(), tmp_path / f"weights.{suffix}"
    match suffix:
        case "safetensors":
            save_file(saved.state_dict(), file)
        case "ckpt":
            torch.save({"epoch": 3, "state_dict": saved.state_dict()}, file)
        case _:
            torch.save(saved.state_dict(), file)
    model = net()
    assert not same(model, saved)
    load_weights(model, file)
    assert same(model, saved)


def test_a_head_of_other_classes_starts_anew(tmp_path: Path) -> None:
    torch.save(net(7).state_dict(), tmp_path / "seven.pt")
    model, before = net(3), net(3)
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"of another shape 2\.weight \(7x5, not 3x5\), 2\.bias \(7, not 3\); model"):
        load_weights(model, tmp_path / "seven.pt")
    assert same(model, before)
    load_weights(model, tmp_path / "seven.pt", ["2.*"])
    assert same(model, before, "2.")
    assert not same(model, before, "0.")


def test_what_is_missing_and_unexpected_is_named(tmp_path: Path) -> None:
    state = net().state_dict()
    state["9.weight"] = state.pop("0.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"it lacks 0\.weight, and has beside the model's 9\.weight; model\.fresh"):
        load_weights(net(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"model\.fresh: 'head\.\*' names no array of the model, such as 0\.weight"):
        load_weights(net(), tmp_path / "other.pt", ["head.*"])


class Evil:
    """What a pickle that runs code looks like."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize("content", ["nothing", "text", "number", "code"])
def test_other_files_are_refused_and_run_nothing(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pt"
    match content:
        case "nothing":
            file.write_bytes(b"")
        case "text":
            file.write_text("weights")
        case "number":
            torch.save({"lr": 0.1}, file)
        case "code":
            torch.save(Evil(), file)
    with pytest.raises(ValueError, match=r"weights\.pt holds no "):
        load_weights(net(), file)
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError, match=r"there is no file of weights .*none\.pt"):
        load_weights(net(), tmp_path / "none.pt")
