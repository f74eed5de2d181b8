"""Text: encoders from local folders, captions of files and of digits, and networks that know whose tokens they take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_cases import WORDS, tiny_encoder

from diffcore.unet3d import UNet3DConfig, data, digits, load, preset, text, training

TEXTS = ["a three moves up left , then bounces", "an eight moves down", "a"]
KINDS = ["bert", "t5", "clip"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_gives_the_vectors_of_its_model_and_padding_does_not_count(kind: str, folder: Path) -> None:
    import torch

    found = text.encoder(tiny_encoder(kind, folder))
    assert (found.width, found.length) == (8, 64 if kind == "t5" else 6)
    assert found.name.startswith(f"{kind} ")
    tokens, mask = found(TEXTS, batch=2)
    counts = [min(found.length, len(words.split()) + 1) for words in TEXTS]
    assert mask.sum(axis=1).tolist() == counts
    assert tokens.shape == (3, max(counts), 8)
    assert [str(part.dtype) for part in (tokens, mask)] == ["float32", "bool"]
    for i, words in enumerate(TEXTS):
        ids = [*[WORDS.index(word) for word in words.split()][: counts[i] - 1], 2]
        with torch.no_grad():
            truth = found.model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(tokens[i, : counts[i]], truth, atol=1e-5)


@pytest.mark.torch
def test_a_name_is_of_the_weights_and_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    first, other = tiny_encoder("t5", folder), tiny_encoder("t5", folder, 1)
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for path in first.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert text.encoder(first).name == text.encoder(copied).name != text.encoder(other).name


@pytest.mark.torch
def test_a_small_model_learns_from_captions_and_its_file_says_which_encoder_it_knows(
    folder: Path, tmp_path: Path
) -> None:
    encoder = text.encoder(tiny_encoder("t5", folder))
    clips = digits.moving_digits(frames=4, size=8, count=6)
    source = data.captioned(clips, digits.captions(digits.moving_digits_truth(frames=4, size=8, count=6)))
    config = preset("tiny", condition="tokens", token_width=encoder.width, encoder=encoder.name)
    settings = training.Settings(steps=2, batch=2, warm_up=1, images=1)
    path = training.train(config, settings, source, tmp_path / "run", tokens=encoder(source.captions))
    model = load(path)
    assert model.config.encoder == encoder.name
    text.check(model.config, encoder)
    tokens, mask = encoder(["a three moves up left", "an eight"])
    z = np.random.default_rng(0).normal(size=(2, 4, 8, 8, 1)).astype(np.float32)
    assert np.abs(model(z, 0.0, (tokens, mask)) - model(z, 0.0)).max() > 0.0
    with pytest.raises(
        ValueError, match=r"trained with the text encoder 't5 \w+', but the folder holds 't5 \w+'; give that"
    ):
        text.check(model.config, text.encoder(tiny_encoder("t5", folder, 1)))
    with pytest.raises(ValueError, match=r"vectors of width 7, but the encoder .* width 8"):
        text.check(replace(config, token_width=7), encoder)
    with pytest.raises(ValueError, match="the condition 'none', and takes no text"):
        text.check(preset("tiny"), encoder)


@pytest.mark.torch
def test_what_is_no_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    place = tiny_encoder("bert", folder)
    found = text.encoder(place)
    for texts, error in (("a three", TypeError), ([3], TypeError), ([], ValueError)):
        with pytest.raises(error, match=r"unet3d.text: `texts` must"):
            found(texts)
    (tmp_path / "config.json").write_bytes((place / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"has no .safetensors file; opening a pickle can run any code"):
        text.encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        text.encoder(tmp_path)
    transformers.GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`folder` must hold a model of a kind in .*, got 'gpt2'"):
        text.encoder(tmp_path)


def test_a_config_says_encoder_and_heads_only_with_tokens_and_old_ones_none() -> None:
    with pytest.raises(ValueError, match="`encoder` must be empty"):
        preset("tiny", encoder="bert 12")
    with pytest.raises(ValueError, match="`token_heads` must be 1 where `condition` is 'none', got 2"):
        preset("tiny", token_heads=2)
    plain = preset("tiny", condition="tokens", token_width=3)
    with pytest.raises(ValueError, match="`token_heads` must divide `embedding`, which is 32, got 5"):
        replace(plain, token_heads=5)
    assert not {"encoder", "token_heads"} & plain.to_dict().keys()
    named = replace(plain, encoder="bert 12", token_heads=4)
    assert UNet3DConfig.from_dict(json.loads(json.dumps(named.to_dict()))) == named


# Captions


def _unfolded(seed: int, count: int, frames: int) -> tuple[Any, Any]:
    """The speeds (N, 2) of digits, and in which frames each axis has met how many borders, without the fold."""
    from diffcore import _streams
    from diffcore.unet3d.data.source import generator

    drawn = generator(seed, _streams.GENERATOR_DIGITS, 0).random((count, 1, 5))[:, 0, 1:]
    speed, angle = 32 * (1 / 40 + (1 / 12 - 1 / 40) * drawn[:, 2]), 2 * np.pi * drawn[:, 3]
    velocity = np.stack([speed * np.sin(angle), speed * np.cos(angle)], axis=-1)
    straight = 16.0 * drawn[:, None, :2] + velocity[:, None] * np.arange(frames)[:, None]
    return velocity, np.floor(straight / 16.0)


@pytest.mark.parametrize("frames", [5, 16])
def test_captions_of_digits_are_true(frames: int) -> None:
    """Where the first step meets no border the way is that of the velocity; bounces are those of the path without its fold."""
    count = 300
    truth = digits.moving_digits_truth(frames=frames, count=count, seed=5)
    velocity, border = _unfolded(5, count, frames)
    said = digits.captions(truth)
    seen = set()
    for i, caption in enumerate(said):
        label = int(truth.labels[i, 0])
        name = "zero one two three four five six seven eight nine".split()[label]  # noqa: SIM905
        assert caption.startswith(f"{'an' if label == 8 else 'a'} {name} moves ")
        moved = np.diff(border[i], axis=0) != 0
        if moved[0].any():
            continue
        way = caption.split(" moves ")[1].split(",")[0].split()
        angles = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
        towards = np.sum([angles[word] for word in way], axis=0) / len(way) ** 0.5
        assert towards @ velocity[i] / np.linalg.norm(velocity[i]) > np.cos(np.pi / 8) - 1e-9
        assert caption.endswith(", then bounces") == bool(moved.any())
        seen.add(" ".join(way))
    assert len(seen) == 8
    assert 0.1 < np.mean([caption.endswith("bounces") for caption in said]) < 1.0


def test_captions_of_several_digits_and_of_pictures() -> None:
    two = digits.captions(digits.moving_digits_truth(count=4, digits=2))
    assert all(caption.count(" moves ") == 2 and " and a" in caption for caption in two)
    assert all(" moves" not in caption for caption in digits.captions(digits.moving_digits_truth(frames=1, count=4)))


class Files(data.Source):
    """Clips of files that nobody reads."""

    def __init__(self, *paths: Path) -> None:
        self.paths = list(paths)

    shape, classes = (4, 8, 8, 1), None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.paths)

    def clip(self, index: int, rng: Any) -> Any:
        return np.full(self.shape, 0.1 * index, np.float32)

    def frame(self, index: int, rng: Any) -> Any:
        return self.clip(index, rng)[0]

    def label(self, index: int) -> None:
        return None


def test_captions_of_files_are_matched_by_path(tmp_path: Path) -> None:
    source = Files(tmp_path / "b.mp4", tmp_path / "in" / "a.mp4", tmp_path / "c.mp4")
    rows = [
        {"file_name": "in/a.mp4", "text": "a dog"},
        {"file": "./b.mp4", "caption": "a cat"},
        {"file_name": "c.mp4", "text": "a dog", "license": "none"},
        {"file_name": "gone.mp4", "text": "nothing"},
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    found = data.captioned(source, path)
    assert [found.captions[found.label(i)] for i in range(3)] == ["a cat", "a dog", "a dog"]
    assert (len(found), found.classes, found.shape) == (3, 2, source.shape)
    batch = data.batch(found, 3, step=0, images=1)
    assert np.array_equal(batch.labels[:, 0], np.where(np.isclose(batch.x[:, 0, 0, 0, 0], 0.0), 0, 1))
    held = data.captioned(
        Files(tmp_path / "c.mp4", tmp_path / "in" / "a.mp4"), path, known=["a bird", "a dog", "a bird"]
    )
    assert (held.captions, held.label(0), held.label(1), held.classes) == (["a bird", "a dog"], 1, 1, 2)
    with pytest.raises(TypeError, match="`known` must be strings"):
        data.captioned(source, path, known="a dog")
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match=r"captions.jsonl has no caption of b.mp4, c.mp4; each video needs a line"):
        data.captioned(source, path)
    for line in ("a dog", '{"file_name": "b.mp4"}', '{"file_name": "b.mp4", "text": 3}', "[]"):
        path.write_text(json.dumps(rows[0]) + "\n" + line)
        with pytest.raises(ValueError, match=r'line 2 of captions.jsonl is not like {"file_name": "a.mp4"'):
            data.captioned(source, path)
    with pytest.raises(ValueError, match="there are 2 captions for 3 clips"):
        data.captioned(source, ["a", "b"])
    clips = digits.moving_digits(frames=4, size=8, count=2)
    with pytest.raises(TypeError, match="`captions` must be a list of texts for a source that is not of files"):
        data.captioned(clips, path)
    with pytest.raises(TypeError, match="`captions` must be strings"):
        data.captioned(clips, list[Any]([1, 2]))
