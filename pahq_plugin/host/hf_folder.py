"""A Hugging Face model in a folder, as ``save_pretrained`` writes it, loaded from these files alone.

Weights are safetensors, the tokenizer is ``tokenizer.json``; other files, pickles and Python code among
them, are never read. A file that is named in the folder has to lie in the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.files import read_json
from pahq_plugin.host.hf_configs import ARCHITECTURES

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
HOW = "write it with model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER)"


def load_folder(folder: Path) -> Any:
    """The causal language model in a folder, in the dtype of its files, on the CPU.

    Raises:
        ModelError: no such folder, a file is missing or damaged, or another architecture.
    """
    if not folder.is_dir():
        raise ModelError(f"no folder at {folder}; expected a Hugging Face model, {HOW}")
    config = _json(folder / CONFIG)
    architecture = _architecture(folder, config)
    _check_config(folder, config)
    _check_weights(folder)
    import transformers

    try:
        # The class is chosen here: what config.json says of code (auto_map) is not followed.
        return (
            getattr(transformers, architecture)
            .from_pretrained(
                str(folder.resolve()),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                **{_dtype_option(transformers.__version__): "auto"},
                attn_implementation="eager",
            )
            .eval()
        )
    except Exception as error:  # whatever transformers makes of broken files
        raise ModelError(
            f"{folder} cannot be loaded ({type(error).__name__}): {one_line(error)}"
        ) from error


def _dtype_option(version: str) -> str:
    """What `from_pretrained` calls the dtype: the old name warns since 4.56."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a folder; ``None`` if it has no ``tokenizer.json``.

    Raises:
        ModelError: the file is damaged.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(
            str(folder.resolve()), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever tokenizers makes of a broken file
        raise ModelError(
            f"{folder / TOKENIZER} cannot be read ({type(error).__name__}): {one_line(error)}"
        ) from error


def _json(file: Path) -> dict[str, Any]:
    """
    Raises:
        ModelError: no such file, or no JSON object.
    """
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise ModelError(f"{file.parent} has no {file.name}; {HOW}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is no readable JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no JSON object")
    return found


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    """
    Raises:
        ModelError: none that can be converted, or one with adapters.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{folder / CONFIG}: architectures is {names!r:.80}; those that can be converted are "
            f"{', '.join(ARCHITECTURES)}"
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json); merge it into the model and save that"
        )
    return name


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """
    Raises:
        ModelError: weights in few bits, which other packages would load, or in a file of another name.
    """
    if config.get("quantization_config") is not None:
        raise ModelError(
            f"{folder / CONFIG}: the model is quantised (quantization_config); save it in its own "
            "precision"
        )
    if "transformers_weights" in config:
        raise ModelError(f"{folder / CONFIG} names a file of weights (transformers_weights); {HOW}")


def _check_weights(folder: Path) -> None:
    """
    Raises:
        ModelError: no safetensors, or an index that names files elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; other formats are not read: {HOW}")
    weights = _json(folder / INDEX).get("weight_map")
    files = set(map(str, weights.values())) if isinstance(weights, dict) else set()
    for name in sorted(files) or [""]:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX} names {name!r:.80}; expected safetensors in the folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, which {INDEX} names")
