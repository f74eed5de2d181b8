"""Tiny text encoders of transformers, at random, in folders of their own."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from diffcore.unet3d import text

WORDS = "[PAD] [UNK] </s> a an three eight moves up down left right then bounces ,".split()  # noqa: SIM905


@functools.cache
def tiny_encoder(kind: str, folder: Path, seed: int = 0) -> Path:
    """A tiny encoder of a kind, at random, with a tokenizer of these words."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    )
    size = {"vocab_size": len(WORDS), "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    config = {
        "bert": lambda: transformers.BertConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=6,
            **size,
        ),
        "t5": lambda: transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, **size),
        "clip": lambda: transformers.CLIPTextConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=6,
            **size,
        ),
    }[kind]()
    torch.manual_seed(seed)
    place = folder / f"{kind}-{seed}"
    getattr(transformers, text.KINDS[kind])(config).save_pretrained(place)
    wrapped.save_pretrained(place)
    return place
