"""A Hugging Face model in a folder, as ``save_pretrained`` writes it, loaded from these files alone.

Weights are safetensors, the tokenizer is ``tokenizer.json``; other files, pickles and Python code among
them, are never read. A file that is named in the folder has to lie in the folder. The model is what the
files hold: weights that are missing, left over or of another shape are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pahq_plugin.errors import ModelError, one_line
from pahq_plugin.models.hf_configs import ARCHITECTURES
from pahq_plugin.system.files import read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes of weights: safetensors' names and torch's."""

HOW = "write it with model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER)"


def load_folder(folder: Path) -> Any:
    """Load the causal language model in a folder, in the dtype of its files, on the CPU.

    Files of several dtypes are loaded in the smallest one that holds them all.

    Raises:
        ModelError: no such folder, a file is missing or damaged, another architecture, or files that do
            not hold exactly the weights of the model that their configuration describes.
    """
    if not folder.is_dir():
        raise ModelError(f"no folder at {folder}; expected a Hugging Face model, {HOW}")
    config = _json(folder / CONFIG)
    architecture = _architecture(folder, config)
    _check_config(folder, config, architecture)
    dtypes = _stored_dtypes(_weight_files(folder))
    import transformers

    try:
        # The class is chosen here: what config.json says of code (auto_map) is not followed.
        model, report = load_with_report(
            getattr(transformers, architecture),
            str(folder.resolve()),
            _smallest_for(folder, dtypes),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
        )
    except ModelError:
        raise
    except Exception as error:  # whatever transformers makes of broken files
        raise ModelError(
            f"{folder} cannot be loaded ({type(error).__name__}): {one_line(error)}"
        ) from error
    check_report(str(folder), report)
    _check_unread(folder, model)
    return model.eval()


def load_with_report(kind: Any, name: str, dtype: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model of `transformers`, and what it has to say of weights, which it would log, too.

    Args:
        kind: a class with `from_pretrained`.
        name: of a folder, or on the hub.
        dtype: of the weights.
        options: of `from_pretrained`.
    """
    import transformers

    options[dtype_option(transformers.__version__)] = dtype
    with _quiet():
        return kind.from_pretrained(name, output_loading_info=True, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Have `transformers` log errors alone, for as long as the ``with`` block lasts."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def check_report(name: str, report: dict[str, Any]) -> None:
    """Read what `from_pretrained` reports about weights; heads tied to embeddings are not missing.

    Args:
        name: of the folder or model, for the message.
        report: the second value of ``from_pretrained(..., output_loading_info=True)``.

    Raises:
        ModelError: weights were missing, and would be random; or were left over, and would be dropped.
    """
    mismatched = [entry[0] for entry in report.get("mismatched_keys", ())]
    said = {
        "lacks": report.get("missing_keys", ()),
        "holds, unlike the model of its configuration,": report.get("unexpected_keys", ()),
        "has other shapes of": mismatched,
    }
    found = [f"{verb} {_some(names)}" for verb, names in said.items() if names]
    if found or report.get("error_msgs"):
        raise ModelError(
            f"{name} {' and '.join(found) or 'was not loaded whole'}; its weights must be those of its "
            f"config.json, under the names that save_pretrained gives them: {HOW}"
        )


def _some(names: Iterable[str]) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more weights" if len(names) > 3 else "")


def _stored_dtypes(files: Iterable[Path]) -> dict[str, str]:
    """The dtype of every tensor in some files, as safetensors names it.

    Raises:
        ModelError: a file is damaged.
    """
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
    """The smallest floating dtype of torch that holds every weight as it is.

    Raises:
        ModelError: weights in few bits, or none at all.
    """
    import torch

    few = [n for n, kind in dtypes.items() if kind not in FLOATS and n.endswith(".weight")]
    if few or not set(FLOATS) & set(dtypes.values()):
        found = f"{few[0]} is {dtypes[few[0]]}" if few else "there are none in floating point"
        raise ModelError(f"{folder}: the model is quantised ({found}); save it in its own precision")
    wanted = None
    for name in sorted(set(FLOATS) & set(dtypes.values())):
        dtype = getattr(torch, FLOATS[name])
        wanted = dtype if wanted is None else torch.promote_types(wanted, dtype)
    return wanted


def _check_unread(folder: Path, model: Any) -> None:
    """Compare what transformers does not read with what the model has in its place.

    These are the weights of a head that the configuration ties to the embedding, and the causal masks
    that old files hold.

    Raises:
        ModelError: a file holds something else.
    """
    import torch

    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if _is_tied(model) else set()
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
                same = stored.shape == there.shape and torch.equal(stored.to(there.dtype), there)
                if not same:
                    raise ModelError(
                        f"{folder} holds a {name} that is not what the model has there: "
                        + (
                            "config.json ties it to the embedding (tie_word_embeddings)"
                            if own in tied
                            else "attention masks other than causal ones cannot be loaded"
                        )
                    )


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def dtype_option(version: str) -> str:
    """What `from_pretrained` calls the dtype: the old name warns since 4.56."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def load_tokenizer(folder: Path) -> Any:
    """Load the fast tokenizer in a folder through the class that is its own.

    The class supplies what its files may leave out: tokens for the beginning and end of a text,
    prefix spaces, normalisation. It is the one that ``tokenizer_config.json`` names, else the one of the
    model's architecture.

    Returns:
        The tokenizer; ``None`` if the folder has no ``tokenizer.json``.

    Raises:
        ModelError: a file is damaged.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        with _quiet():  # of classes of other names, which is what was looked for here
            return _tokenizer_class(folder).from_pretrained(
                str(folder.resolve()), local_files_only=True, trust_remote_code=False
            )
    except ModelError:
        raise
    except Exception as error:  # whatever tokenizers makes of a broken file
        raise ModelError(
            f"{folder / TOKENIZER} cannot be read ({type(error).__name__}): {one_line(error)}"
        ) from error


def _tokenizer_class(folder: Path) -> Any:
    """The class of a folder's tokenizer, one of transformers' own."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, tokenizer_class_from_name

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


def _check_config(folder: Path, config: dict[str, Any], architecture: str) -> None:
    """
    Raises:
        ModelError: two architectures, weights in few bits, which other packages would load, or in a file
            of another name.
    """
    import transformers

    own = getattr(transformers, architecture).config_class.model_type
    named = config.get("model_type", own)
    if named != own and named in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{folder / CONFIG}: model_type is {named!r:.80}, but architectures says {architecture}, "
            f"which is {own!r}; both must name one model"
        )
    if config.get("quantization_config") is not None:
        raise ModelError(
            f"{folder / CONFIG}: the model is quantised (quantization_config); save it in its own "
            "precision"
        )
    if "transformers_weights" in config:
        raise ModelError(f"{folder / CONFIG} names a file of weights (transformers_weights); {HOW}")


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers would read.

    Raises:
        ModelError: no safetensors, or an index that names files elsewhere.
    """
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
