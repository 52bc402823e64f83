"""Prompts -> token ids, by the tokenizer file that comes with a text encoder.

Built on the libraries underneath transformers, whose own tokenizer classes changed between its versions 4 and 5.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .prompt import compose_prompt, first_words, lint_prompt
from .quoting import plain
from .weights.reading import CheckpointError, naming
from .weights.tokenizer_files import checked_json, checked_spiece

log = logging.getLogger(__name__)

# What a file is not that opens, and then fails at a text.
READS_ALL = "a tokenizer that reads every text"
# T5 and mT5 agree on these.
PAD, END, UNKNOWN = 0, 1, 2


class SceneTokenizer:
    """Batches of prompts -> token ids, with the generator's special tokens and its length limit."""

    def __init__(self, file: Path, special_tokens: tuple[str, ...], max_tokens: int, table_rows: int):
        kind: type[JsonFile | SentencePieceFile] = SentencePieceFile if file.suffix == ".model" else JsonFile
        self.file = kind(file, special_tokens, table_rows)
        self.max_tokens = max_tokens

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids ``[B, S]`` int64 and mask ``[B, S]`` bool of tagged prompts.

        Doubts about them, and a cut at the limit, are logged.

        Raises PromptError for a prompt that the model cannot read; see :func:`dasheng_core.prompt.lint_prompt`.
        """
        rows = [self._encode(compose_prompt(prompt=prompt)) for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device="cpu")
        lengths = torch.tensor([len(row) for row in rows], device="cpu")
        mask = torch.arange(longest, device="cpu") < lengths[:, None]
        return ids, mask

    def _encode(self, prompt: str) -> list[int]:
        for doubt in lint_prompt(prompt, self.file.read):
            log.warning(doubt)
        ids = self.file.encode(prompt)
        if len(ids) <= self.max_tokens:
            return ids
        kept = ids[: self.max_tokens - 1]
        log.warning(
            "The prompt is %d tokens long; the model reads %d. What is not read begins with %r.",
            len(ids),
            self.max_tokens,
            first_words(self.file.decode(ids[len(kept) : -1])),
        )
        return [*kept, END]


class JsonFile:
    """``tokenizer.json``, the form of the tokenizers library. ``size`` counts the file's own tokens.

    Raises CheckpointError for a file that is not readable, or (at the first text that shows it) not made for a table of ``table_rows``.
    """

    def __init__(self, file: Path, special_tokens: tuple[str, ...], table_rows: int):
        self._path, self._rows = file, table_rows
        with naming(file, "a readable tokenizer.json"):
            self._tokenizer = Tokenizer.from_str(checked_json(file))
            # A generator's own file can have its special tokens added already.
            self.size = self._tokenizer.get_vocab_size(with_added_tokens=False)
            self._tokenizer.add_special_tokens(list(special_tokens))
            self.special_token_ids = [self._tokenizer.token_to_id(token) for token in special_tokens]

    def encode(self, text: str) -> list[int]:
        """Ids, END included."""
        with naming(self._path, READS_ALL):
            ids = self._tokenizer.encode(text).ids
        beyond = [i for i in ids if i >= self._rows and i not in self.special_token_ids]
        if beyond or not ids:
            made = f"token {beyond[0]}" if beyond else "no tokens"
            raise CheckpointError(
                f"{plain(self._path)} makes {made} of a text, but the text encoder has {self._rows} tokens: it belongs to another."
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        with naming(self._path, READS_ALL):
            return self._tokenizer.decode(ids)

    def read(self, text: str) -> tuple[str, list[str]]:
        """What the vocabulary has of a text, and the pieces that it lacks."""
        with naming(self._path, READS_ALL):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return _sort_pieces(
            (number, piece if number != UNKNOWN else text[slice(*place)])
            for number, piece, place in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        )


class SentencePieceFile:
    """``spiece.model``, the form of the sentencepiece library. Special tokens are numbered after its pieces.

    Raises:
        ImportError: the sentencepiece package is not installed.
        CheckpointError: not a readable file.
    """

    def __init__(self, file: Path, special_tokens: tuple[str, ...], table_rows: int):
        from sentencepiece import SentencePieceProcessor

        self._path = file
        with naming(file, "a readable spiece.model"):
            self._pieces = SentencePieceProcessor(model_proto=checked_spiece(file))
            self.size = self._pieces.get_piece_size()
            if self.size == 0:
                raise ValueError("it has no pieces")
        self.special_token_ids = [self.size + i for i in range(len(special_tokens))]
        self._ids = dict(zip(special_tokens, self.special_token_ids, strict=True))
        self._split = re.compile("(" + "|".join(map(re.escape, special_tokens)) + ")") if special_tokens else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        with naming(self._path, READS_ALL):
            for part in self._split.split(text) if self._split else [text]:
                ids += [self._ids[part]] if part in self._ids else self._pieces.encode(part)
        return [*ids, END]

    def decode(self, ids: list[int]) -> str:
        with naming(self._path, READS_ALL):
            return str(self._pieces.decode([i for i in ids if i < self.size]))

    def read(self, text: str) -> tuple[str, list[str]]:
        # Of a piece that is unknown, the library gives the text itself.
        with naming(self._path, READS_ALL):
            pieces = self._pieces.encode(text), self._pieces.encode(text, out_type=str)
        return _sort_pieces(zip(*pieces, strict=True))


def _sort_pieces(pieces: Iterable[tuple[int, str]]) -> tuple[str, list[str]]:
    pieces = list(pieces)
    # U+2581 is how both libraries write the space before a word.
    known = "".join(piece for number, piece in pieces if number != UNKNOWN).replace("\u2581", " ")
    return known, [piece for number, piece in pieces if number == UNKNOWN]
