"""Models of Hugging Face transformers, from a local folder or from a configuration."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from flsparse.tasks.torchvision_compat import import_torchvision


class _Logits(nn.Module):
    """A transformers model, of whose outputs the logits are kept."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).logits
        return logits


def hf_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    folder: str | None = None,
    arch: str | None = None,
    config: Mapping[str, Any] | None = None,
    head: Literal["image_classification", "causal_lm", "sequence_classification"] | None = None,
) -> nn.Module:
    """Build a model of Hugging Face transformers, from a folder or from a configuration; nothing is fetched.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of images, or (length,) of tokens.
    num_classes : int
        Number of classes, or of tokens.
    folder : str, optional
        Where ``save_pretrained`` has put ``config.json``; its weights are read too, where they are there.
    arch : str, optional
        Model type, such as ``vit`` or ``gpt2``, for a model with fresh weights; without a folder.
    config : Mapping, optional
        Values of its configuration, such as ``{n_layer: 2}``.
    head : {"image_classification", "causal_lm", "sequence_classification"}, optional
        What it is for; by default image_classification of images, and causal_lm of text.

    Raises
    ------
    ModuleNotFoundError
        transformers is not installed.
    FileNotFoundError
        The folder has no ``config.json``.
    ValueError
        Neither or both of folder and arch are given, or there is no such model.
    """
    try:
        import_torchvision()  # transformers imports it, whichever torch it was compiled for
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("model=hf needs transformers: pip install 'flsparse[hf]'") from error
    if (folder is None) == (arch is None):
        raise ValueError("model=hf takes model.folder, a local folder, or model.arch, such as gpt2: give one of them")
    head = head or ("image_classification" if len(input_shape) == 3 else "causal_lm")
    maker: Any = {
        "image_classification": transformers.AutoModelForImageClassification,
        "causal_lm": transformers.AutoModelForCausalLM,
        "sequence_classification": transformers.AutoModelForSequenceClassification,
    }[head]
    sizes: dict[str, Any] = {"vocab_size": num_classes} if head == "causal_lm" else {"num_labels": num_classes}
    if len(input_shape) == 3:
        sizes |= {"num_channels": input_shape[0], "image_size": input_shape[1]}
    options = sizes | dict(config or {})
    if arch is not None:
        if arch not in transformers.CONFIG_MAPPING:
            near = difflib.get_close_matches(arch, list(transformers.CONFIG_MAPPING), n=3, cutoff=0.4)
            raise ValueError(
                f"model.arch={arch!r} is no model type of transformers, as {', '.join(near or ['gpt2'])} are"
            )
        return _Logits(maker.from_config(transformers.AutoConfig.for_model(arch, **options)))
    path = Path(str(folder)).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"model.folder={folder}: there is no config.json in {path.resolve()}; save_pretrained writes it"
        )
    found = transformers.AutoConfig.from_pretrained(path, **options)
    if not any(path.glob("*.safetensors")):
        return _Logits(maker.from_config(found))
    return _Logits(maker.from_pretrained(path, config=found, ignore_mismatched_sizes=True, local_files_only=True))
