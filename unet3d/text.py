"""Text as a condition: the tokens of captions, by a text encoder of transformers that lies in a local folder.

    encoder = text.encoder("models/bert-large-uncased")      # a folder: config, tokenizer, safetensors; nothing is downloaded
    tokens, mask = encoder(["a three moves up left"])        # (1, L, D) float32 and (1, L) bool: `cond` of a network with tokens

A network says in `config.encoder` which encoder it was trained with, and `check` compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _check
from diffcore.unet3d.config import UNet3DConfig

FUNCTION = "unet3d.text.encoder"
KINDS = {"bert": "BertModel", "t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}
KINDS |= dict.fromkeys(("clip", "clip_text_model"), "CLIPTextModel")
"""What a folder's config calls itself -> the class of transformers that gives a vector per token."""

VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")

Tokens = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A text encoder: what `encoder` returns.

    Fields:
        name: what it is, "bert" and the start of a digest of its weights and vocabulary: `UNet3DConfig.encoder`.
        width: D of its vectors: `UNet3DConfig.token_width`.
        length: of a text in tokens, at most.
    """

    name: str
    width: int
    length: int
    tokenizer: Any
    model: Any

    def __call__(self, texts: Sequence[str], *, batch: int = 64) -> Tokens:
        """Return the vectors of texts (N, L, D) and which of them count (N, L); a text beyond `length` tokens is cut.

        Raises:
            TypeError: what is no sequence of strings.
            ValueError: no text at all.
        """
        import torch

        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise _check.error(TypeError, "unet3d.text", "texts", 'be strings, such as ["a three moves up"]', texts)
        if not texts:
            raise _check.error(ValueError, "unet3d.text", "texts", "hold at least one text", texts)
        place, parts = next(self.model.parameters()).device, []
        for first in range(0, len(texts), batch):
            how = {"padding": True, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
            given = self.tokenizer(list(texts[first : first + batch]), **how)
            ids, mask = given["input_ids"].to(place), given["attention_mask"].to(place)
            with torch.inference_mode():
                found = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            parts.append((found.float().cpu().numpy(), mask.cpu().numpy().astype(np.bool_)))
        longest = max(mask.shape[1] for _, mask in parts)
        wide = lambda part: np.pad(part, [(0, 0), (0, longest - part.shape[1])] + [(0, 0)] * (part.ndim - 2))  # noqa: E731
        return np.concatenate([wide(part) for part, _ in parts]), np.concatenate([wide(mask) for _, mask in parts])


def encoder(folder: str | os.PathLike[str], *, length: int = 64, device: Any = None) -> Encoder:
    """Return the text encoder of a folder, as `save_pretrained` of transformers writes it: BERT as in the paper, T5, or CLIP's.

    Nothing is downloaded, no code of the folder is run, and weights are read from safetensors alone.

    Args:
        folder: with config.json, the tokenizer's files and model.safetensors.
        length: tokens of a text at most; what the encoder itself takes where that is less.
        device: as torch names it.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: another kind of model, no safetensors, or files that cannot be read.
        ImportError: transformers or torch is missing; install diffcore[text].

    Source: Ho et al. 2022 (arXiv 2204.03458), sec. 4.3, for BERT-large.

    >>> encoder("no such folder")
    Traceback (most recent call last):
    FileNotFoundError: unet3d.text.encoder: there is no folder 'no such folder' with a config.json; it takes a local one
    """
    length = _check.integer(FUNCTION, "length", length, 1)
    if not isinstance(folder, (str, os.PathLike)) or not isinstance(os.fspath(folder), str):
        raise _check.error(TypeError, FUNCTION, "folder", "be the name of a folder, a str or a pathlib.Path", folder)
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"{FUNCTION}: there is no folder {_check.shown(str(folder))} with a config.json; it takes a local one"
        )
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(f"{FUNCTION}: text needs {error.name}; install diffcore[text]") from error
    weights = sorted(place.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"{FUNCTION}: {place.name!r} has no .safetensors file; opening a pickle can run any code, so write the weights anew: "
            f"model.save_pretrained(folder)"
        )
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = str(transformers.AutoConfig.from_pretrained(place, **local).model_type)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **local) if kind in KINDS else None
        how = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
        with _quiet(transformers):
            model = getattr(transformers, KINDS[kind]).from_pretrained(place, **how) if kind in KINDS else None
    except Exception as error:  # of kinds of the libraries' own
        raise ValueError(f"{FUNCTION}: {place.name!r} cannot be read: {_check.cut(str(error))}") from None
    if model is None or tokenizer is None:
        raise _check.error(ValueError, FUNCTION, "folder", f"hold a model of a kind in {sorted(KINDS)}", kind)
    model = model.to(device).eval().requires_grad_(False)
    most = getattr(model.config, "max_position_embeddings", None) or length
    if tokenizer.pad_token is None:  # padding does not count, so that any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    name = (
        f"{'clip' if kind.startswith('clip') else kind} {_digest([*weights, *(place / each for each in VOCABULARY)])}"
    )
    return Encoder(name, int(model.config.hidden_size), min(length, int(most)), tokenizer, model)


def check(config: UNet3DConfig, found: Encoder) -> None:
    """Raise ValueError unless a network takes the vectors of an encoder: tokens of its width, from the one it was trained with."""
    function = "unet3d.text"
    if config.condition != "tokens":
        raise ValueError(f"{function}: the network has the condition {config.condition!r}, and takes no text")
    if config.token_width != found.width:
        raise ValueError(
            f"{function}: the network takes vectors of width {config.token_width}, but the encoder {found.name!r} gives them of "
            f"width {found.width}"
        )
    if config.encoder and config.encoder != found.name:
        raise ValueError(
            f"{function}: the network was trained with the text encoder {config.encoder!r}, but the folder holds {found.name!r}; "
            f"give that of the one it knows"
        )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Show no bar while weights are loaded."""
    told = transformers.utils.logging
    shown = told.is_progress_bar_enabled()
    told.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            told.enable_progress_bar()


def _digest(paths: Sequence[Path]) -> str:
    """Return the start of the SHA-256 of files, of those that there are."""
    whole = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]
