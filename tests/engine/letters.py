"""A tokenizer whose tokens are the characters themselves."""

from __future__ import annotations

from pathlib import Path

from octavo.checkpoint import Checkpoint

CHECKPOINT = Checkpoint(name="letters", path=Path("x"), format="dummy", config={"model_type": "x"})


class Letters:
    eos_token_ids = (0,)
    special_ids = frozenset({0})
    chat_template = None
    bos_token = eos_token = None

    def encode(self, text, add_special_tokens=True):
        return [ord(letter) for letter in text]

    def token(self, token_id):
        return chr(token_id)

    def token_bytes(self, token_id):
        return chr(token_id).encode()
