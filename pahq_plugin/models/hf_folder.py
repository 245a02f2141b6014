"""Load a Hugging Face model from the files that ``save_pretrained`` wrote into a folder.

Weights are safetensors and the tokenizer is ``tokenizer.json``; other files, including pickles and
Python code, are never read. Files that the folder refers to must lie in the folder. Weights that are
missing, left over or of a wrong shape are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, tokenizer_class_from_name

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.models.hf_configs import ARCHITECTURES
from pahq_plugin.system.files import read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Floating dtypes of weights by safetensors' names."""

HOW = "write it with model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER)"


def load_folder(folder: Path) -> Any:
    """Load the causal language model in a folder, in the dtype of its files, on the CPU.

    Files of several dtypes are loaded in the smallest dtype that holds them all.

    Raises:
        ModelError: the folder or a file is missing, a file is damaged, the architecture is not
            supported, or the files do not hold exactly the weights that the configuration describes.
    """
    if not folder.is_dir():
        raise ModelError(f"no folder at {folder}; expected a Hugging Face model; {HOW}")
    config = _json(folder / CONFIG)
    architecture = _architecture(folder, config)
    _check_config(folder, config, architecture)
    dtype = _smallest_for(folder, _stored_dtypes(_weight_files(folder)))
    try:
        # The class is chosen here: code that config.json names (auto_map) is not loaded.
        model, report = load_with_report(
            getattr(transformers, architecture),
            str(folder.resolve()),
            dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
        )
    except Exception as error:  # transformers may raise anything on broken files
        raise ModelError(
            f"{folder} cannot be loaded ({type(error).__name__}): {one_line(error)}"
        ) from error
    check_report(str(folder), report)
    _check_unread(folder, model)
    return model.eval()


def load_with_report(kind: Any, name: str, dtype: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model of `transformers`, and return it with its report about weights, without logging.

    ``kind`` is a class with `from_pretrained`, ``name`` a folder or a name on the hub.
    """
    # The option has its present name since 4.56; the old one warns.
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    options["dtype" if (major, minor) >= (4, 56) else "torch_dtype"] = dtype
    with _quiet():
        return kind.from_pretrained(name, output_loading_info=True, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Make `transformers` log only errors inside the ``with`` block."""

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def check_report(name: str, report: dict[str, Any]) -> None:
    """Check the report of `load_with_report` on weights; heads tied to embeddings count as present.

    Raises:
        ModelError: weights are missing, and would be random, or are left over, and would be dropped.
    """
    said = {
        "lacks": report.get("missing_keys", ()),
        "has the additional weights": report.get("unexpected_keys", ()),
        "has wrong shapes of": [entry[0] for entry in report.get("mismatched_keys", ())],
    }
    found = [f"{verb} {_some(names)}" for verb, names in said.items() if names]
    if found or report.get("error_msgs"):
        raise ModelError(
            f"{name} {' and '.join(found) or 'was not loaded completely'}; its weights must be those of "
            f"its config.json, under the names that save_pretrained uses: {HOW}"
        )


def _some(names: Iterable[str]) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more weights" if len(names) > 3 else "")


def _stored_dtypes(files: Iterable[Path]) -> dict[str, str]:
    """Return the dtype of every tensor in the files, by safetensors' names; refuse damaged files."""
    found = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                found |= {name: str(opened.get_slice(name).get_dtype()) for name in names}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be loaded: {one_line(error)}") from error
    return found


def _smallest_for(folder: Path, dtypes: dict[str, str]) -> Any:
    """Return torch's smallest floating dtype that represents every weight; refuse quantised ones."""
    few = [n for n, kind in dtypes.items() if kind not in FLOATS and n.endswith(".weight")]
    floats = [FLOATS[kind] for kind in set(dtypes.values()) if kind in FLOATS]
    if few or not floats:
        found = f"{few[0]} is {dtypes[few[0]]}" if few else "no weights are in floating point"
        raise ModelError(f"{folder}: the model is quantised ({found}); save it unquantised")
    return reduce(torch.promote_types, floats)


def _check_unread(folder: Path, model: Any) -> None:
    """Refuse stored tensors that transformers does not read, if they differ from those of the model.

    These are the weights of a head that the configuration ties to the embedding, and the causal masks
    in old files.
    """
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if is_tied else set()
    masks = {name for name, buffer in model.named_buffers() if buffer.dtype == torch.bool}
    prefix = f"{model.base_model_prefix}."
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                own = next((n for n in (name, prefix + name) if n in tied | masks), None)
                if own is None:
                    continue
                stored = opened.get_tensor(name)
                there = model.get_parameter(own) if own in tied else model.get_buffer(own)
                if torch.equal(stored.to(there.dtype), there):
                    continue
                raise ModelError(
                    f"{folder} holds a {name} that differs from the model's: "
                    + (
                        "config.json ties it to the embedding (tie_word_embeddings)"
                        if own in tied
                        else "attention masks other than causal ones cannot be loaded"
                    )
                )


def load_tokenizer(folder: Path) -> Any:
    """Load the fast tokenizer in a folder through its own class.

    The class, named by ``tokenizer_config.json`` or else that of the model's architecture, supplies what
    the files may leave out: tokens for the beginning and end of a text, prefix spaces, normalisation.
    Without ``tokenizer.json`` the result is ``None``.

    Raises:
        ModelError: a file is damaged.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        with _quiet():  # it warns if the class has another name than the file says
            return _tokenizer_class(folder).from_pretrained(
                str(folder.resolve()), local_files_only=True, trust_remote_code=False
            )
    except ModelError:
        raise
    except Exception as error:  # tokenizers may raise anything on a broken file
        raise ModelError(
            f"{folder / TOKENIZER} cannot be read ({type(error).__name__}): {one_line(error)}"
        ) from error


def _tokenizer_class(folder: Path) -> Any:
    """Return the class of a folder's tokenizer, one of transformers' own."""
    named = None
    if (folder / TOKENIZER_CONFIG).is_file():
        named = _json(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    if isinstance(named, str):
        for name in (f"{named.removesuffix('Fast')}Fast", named):
            found = tokenizer_class_from_name(name)
            if found is not None:
                return found
    architecture = _architecture(folder, _json(folder / CONFIG))
    config_class = getattr(transformers, architecture).config_class
    known = TOKENIZER_MAPPING.get(config_class, None)
    fast = known[-1] if isinstance(known, tuple) else known
    return fast or transformers.PreTrainedTokenizerFast


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object; refuse a missing file or anything else with a `ModelError`."""
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise ModelError(f"{file.parent} has no {file.name}; {HOW}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} must hold readable JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return found


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    """Return the folder's architecture; refuse adapters and architectures that cannot be converted."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{folder / CONFIG}: architectures is {names!r:.80}; supported architectures: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json); merge it and save the merged model"
        )
    return name


def _check_config(folder: Path, config: dict[str, Any], architecture: str) -> None:
    """Refuse a configuration that contradicts itself, is quantised, or names its own file of weights."""
    own = getattr(transformers, architecture).config_class.model_type
    named = config.get("model_type", own)
    if named != own and named in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{folder / CONFIG}: model_type is {named!r:.80}, but architectures says {architecture}, "
            f"which is {own!r}; both must name the same model"
        )
    if config.get("quantization_config") is not None:
        raise ModelError(
            f"{folder / CONFIG}: the model is quantised (quantization_config); save it unquantised"
        )
    if "transformers_weights" in config:
        raise ModelError(f"{folder / CONFIG} names a weight file (transformers_weights); {HOW}")


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers would read; refuse all but safetensors in the folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; other formats are not read: {HOW}")
    weights = _json(folder / INDEX).get("weight_map")
    files = set(map(str, weights.values())) if isinstance(weights, dict) else set()
    for name in sorted(files) or [""]:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX} names {name!r:.80}; expected safetensors in the folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, which {INDEX} names")
    return [folder / name for name in sorted(files)]
