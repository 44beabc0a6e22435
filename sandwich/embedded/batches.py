"""Token windows for training: documents packed end to end, each beginning with end-of-text.

Batches are a pure function of (seed, step).
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from sandwich.embedded.corpus import Kind, SourceFile, chat_example, functions
from sandwich.embedded.tokens import END_OF_TEXT, chat_text

WINDOW = 1024  # tokens predicted per window
# Windows per batch. Functions by themselves are a third: a short prompt is then familiar ground.
# While the learning rate is low, at the end, they are the larger part, since they stay longest.
MIXTURE = {Kind.LIBRARY: 3, Kind.TESTS: 2, Kind.FUNCTION: 2, Kind.CHAT: 1}
FINAL_MIXTURE = {Kind.LIBRARY: 1, Kind.TESTS: 0, Kind.FUNCTION: 5, Kind.CHAT: 2}
FREE_FUNCTION_COPIES = 3  # per epoch, of a function that is no method, as in a typical prompt


def documents(files: Iterable[SourceFile], seed: int) -> dict[Kind, list[str]]:
    """The texts of each kind. Functions and chats are of short, documented functions only."""
    rng = random.Random(seed)
    texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    for file in files:
        texts[file.kind].append(file.text)
        for function in functions(file):
            if function.is_short:
                copies = 1 if function.is_method else FREE_FUNCTION_COPIES
                for _ in range(copies):
                    texts[Kind.FUNCTION].append(function.source)
                    texts[Kind.CHAT].append(chat_text(chat_example(function, rng)))
    return texts


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """uint16 ids of each text, `<|endoftext|>` first."""
    return [np.asarray(encoding.ids, dtype=np.uint16) for encoding in tokenizer.encode_batch(texts)]


@dataclass
class Stream:
    """Endless windows of one kind: documents are reshuffled, joined and cut anew in every epoch."""

    encoded: list[np.ndarray]
    seed: int

    def __post_init__(self) -> None:
        self._windows_per_epoch = (sum(map(len, self.encoded)) - 1) // WINDOW
        self._epoch = -1

    def window(self, index: int) -> np.ndarray:
        """Window `index` of the endless sequence: int64 (WINDOW + 1,)."""
        epoch, offset = divmod(index, self._windows_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(len(self.encoded))
            self._joined = np.concatenate([self.encoded[i] for i in order])
            self._order = rng.permutation(self._windows_per_epoch)
            self._epoch = epoch
        start = int(self._order[offset]) * WINDOW
        return self._joined[start : start + WINDOW + 1].astype(np.int64)


class Batches:
    """Training batches in the shares of MIXTURE or FINAL_MIXTURE.

    Each step has windows of its own set apart in every stream, as many as the larger share takes.
    """

    def __init__(self, encoded: Mapping[Kind, list[np.ndarray]], seed: int) -> None:
        self._streams = {kind: Stream(encoded[kind], seed + i) for i, kind in enumerate(MIXTURE)}

    def batch(self, step: int, length: int, is_final: bool) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step: int64 (num_windows * WINDOW / length, length) each."""
        mixture = FINAL_MIXTURE if is_final else MIXTURE
        windows = np.stack(
            [
                self._streams[kind].window(step * max(MIXTURE[kind], FINAL_MIXTURE[kind]) + i)
                for kind, count in mixture.items()
                for i in range(count)
            ]
        )
        return windows[:, :-1].reshape(-1, length), windows[:, 1:].reshape(-1, length)


def tokens_per_batch() -> int:
    """Tokens predicted in one training step."""
    return WINDOW * sum(MIXTURE.values())


def training_tokenizer_texts(texts: Mapping[Kind, list[str]]) -> list[str]:
    """What the tokenizer learns from: the library twice, so that tests do not drown it."""
    return texts[Kind.LIBRARY] * 2 + texts[Kind.TESTS]


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The id that begins every document."""
    token_id = tokenizer.token_to_id(END_OF_TEXT)
    assert token_id is not None
    return token_id
