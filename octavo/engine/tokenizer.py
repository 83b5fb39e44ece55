"""Text to token ids and back, for every kind of checkpoint, on top of the `tokenizers` library.

Encoding is the library's. Decoding is done here, from each token's bytes: joining bytes and reading them as UTF-8 is
what all of these decoders come to, it gives the detokenizer a form that can stop and go on anywhere, and an invalid
byte spoils itself and not its neighbours. Knows nothing of models or requests.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from octavo.checkpoint import Checkpoint, GGUFFile, embedded
from octavo.checkpoint.checkpoint import read_json
from octavo.checkpoint.folder import chat_template
from octavo.checkpoint.hub import TOKENIZER_FILES, download, parse
from octavo.engine import gguf_tokenizer
from octavo.errors import CheckpointError, InvalidRequest

logger = logging.getLogger(__name__)

# Control tokens that end a turn or a text. GGUF names one end token; chat models end their turns with another.
_END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|EOT|>",
    "<end_of_turn>",
)
# What ends an answer of gpt-oss, which consists of messages.
_HARMONY, _MESSAGE_END = ("<|return|>", "<|call|>"), "<|end|>"


class SpecialTokens(NamedTuple):
    """Who plays which part, as the checkpoint says."""

    bos: str | None
    eos: str | None
    end_ids: tuple[int, ...]  # every token that ends an output
    chat_template: str | None


class Tokenizer:
    """A model's tokenizer. Methods may be called from several threads at once."""

    def __init__(self, backend: Backend, special: SpecialTokens) -> None:
        self._backend = backend
        self.bos_token = special.bos
        self.eos_token = special.eos
        self.eos_token_ids = sorted(set(special.end_ids))
        self.chat_template = special.chat_template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._spelling = _spelling(backend.decoder)
        # Added tokens stand in texts as they are, whatever the vocabulary's own alphabet.
        self._bytes = {token_id: token.content.encode() for token_id, token in added.items()}
        if self._spelling.replace_in_added is not None:
            old, new = self._spelling.replace_in_added
            self._bytes = {token_id: text.replace(old, new) for token_id, text in self._bytes.items()}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, override: str | None = None) -> Tokenizer:
        """The checkpoint's tokenizer, or that of `override`: see `_locate`. Raises CheckpointError."""
        path = checkpoint.path if override is None else _locate(override)
        if path.suffix == ".gguf":
            backend, special = _from_gguf(path)
        else:
            backend, special = _from_folder(path)
        ends = [*special.end_ids]
        for config in (checkpoint.config, checkpoint.generation_config):
            ends += _ids(config.get("eos_token_id"))
        return cls(backend, special._replace(end_ids=tuple(ends)))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Special tokens written in the text are taken as such: that is what chat templates are made of.

        `add_special_tokens` puts the model's beginning token (and end token, if it has the habit) around the text; a
        rendered chat template already has them. Raises InvalidRequest for text that is not Unicode.
        """
        _check_unicode(text)
        # unlike `encode`, this keeps no offsets and lets other threads run
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_to_pool(
        self, text: str, second: str | None = None, *, most: int | None = None, add_special_tokens: bool = True
    ) -> tuple[list[int], int | None]:
        """One text, or two to be compared, as an encoder reads them; and where the second segment begins, if any.

        most: cut to so many tokens, those that the tokenizer adds included; of a pair the second text is cut. Raises
        InvalidRequest for text that is not Unicode, or where no token of a text would be left.
        """
        encoding = self._encoding(text)
        pair = None if second is None else self._encoding(second)
        if most is not None:
            added = self._backend.num_special_tokens_to_add(pair is not None) if add_special_tokens else 0
            room = most - added - (len(encoding.ids) if pair is not None else 0)
            if room < 1:
                message = f"cut to {most} tokens, nothing of the text is left"
                raise InvalidRequest(message, param="truncate_prompt_tokens", code="invalid_value")
            (pair or encoding).truncate(room)
        whole = self._backend.post_process(encoding, pair, add_special_tokens)
        return whole.ids, whole.type_ids.index(1) if 1 in whole.type_ids else None

    def _encoding(self, text: str) -> Any:
        _check_unicode(text)
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; bytes that are no UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else ()
        raw = b"".join(self.token_bytes(token_id) for token_id in ids if token_id not in skipped)
        return self.strip_start(raw).decode("utf-8", "replace")

    def token(self, token_id: int) -> str:
        """The text of one token, special or not, with its leading space."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """Of a token, as the vocabulary spells it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for: part of a character, sometimes; none for ids beyond the vocabulary."""
        raw = self._bytes.get(token_id)
        if raw is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            raw = self._bytes[token_id] = b"" if token is None else self._spelling.to_bytes(token)
        return raw

    def strip_start(self, raw: bytes) -> bytes:
        """Without the space that SentencePiece puts before a text, for bytes that begin one."""
        return raw[1:] if self._spelling.strips_start and raw.startswith(b" ") else raw


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the text holds half of a surrogate pair, which is not a character") from None


class _Spelling(NamedTuple):
    """How a vocabulary writes bytes."""

    to_bytes: Callable[[str], bytes]
    strips_start: bool = False  # one space at the start of a text was put there by the tokenizer
    replace_in_added: tuple[bytes, bytes] | None = None


def _spelling(decoder: Any) -> _Spelling:
    """What the library's decoder does, read from its own description. Raises CheckpointError for kinds unknown here."""
    described = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "None"}
    steps = described.get("decoders", [described])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _Spelling(_byte_level_bytes)
    if kinds == ["Metaspace"]:
        mark = steps[0]["replacement"]
        strips = steps[0].get("prepend_scheme", "always") != "never"
        return _Spelling(lambda token: token.replace(mark, " ").encode(), strips, (mark.encode(), b" "))
    if kinds == ["WordPiece"]:
        prefix = steps[0]["prefix"]
        return _Spelling(lambda token: _word_piece_bytes(token, prefix), strips_start=True)
    if kinds == ["None"]:
        return _Spelling(lambda token: b" " + token.encode(), strips_start=True)
    if (
        kinds[:3] == ["Replace", "ByteFallback", "Fuse"]
        and kinds[3:] in ([], ["Strip"])
        and "String" in steps[0]["pattern"]
    ):
        mark, space = steps[0]["pattern"]["String"], steps[0]["content"]
        return _Spelling(
            lambda token: _byte_fallback_bytes(token, mark, space),
            kinds[-1] == "Strip",
            (mark.encode(), space.encode()),
        )
    raise CheckpointError(f"the tokenizer decodes by {' + '.join(kinds)}, which octavo does not know")


def _word_piece_bytes(token: str, prefix: str) -> bytes:
    return token.removeprefix(prefix).encode() if token.startswith(prefix) else b" " + token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's way to make every byte visible: printable ones stand for themselves, the others begin at U+0100."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()  # not written in the alphabet, so meant as it is


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_fallback_bytes(token: str, mark: str, space: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token.replace(mark, space).encode()


def _locate(override: str) -> Path:
    """A folder, .gguf file, hub id or one of octavo's own models. Raises CheckpointError."""
    path = Path(override).expanduser()
    if path.exists():
        return path.parent if path.name == "tokenizer.json" else path
    if override.lower() in embedded.EMBEDDED:
        return embedded.fetch(embedded.EMBEDDED[override.lower()])
    if (hub_id := parse(override)) is None:
        raise CheckpointError(f"tokenizer {override}: no such folder, and not the form of a hub id (org/name)")
    root = download(hub_id, TOKENIZER_FILES)
    return root / hub_id.file if hub_id.file else root


def _from_gguf(path: Path) -> tuple[Backend, SpecialTokens]:
    vocabulary = gguf_tokenizer.Vocabulary(GGUFFile(path))
    backend = gguf_tokenizer.build(vocabulary)
    control = {vocabulary.tokens[place] for place in vocabulary.of_type(gguf_tokenizer.CONTROL)}
    named = [vocabulary.special_id(name) for name in ("eos", "eot", "eom")]
    ends = {*named, *(vocabulary.ids[token] for token in _END_TOKENS if token in control)}
    if control.issuperset(_HARMONY):
        ends = ends - {vocabulary.ids.get(_MESSAGE_END)} | {vocabulary.ids[token] for token in _HARMONY}
    template = vocabulary.file.metadata.get("tokenizer.chat_template")
    return backend, SpecialTokens(
        bos=vocabulary.special_token("bos"),
        eos=vocabulary.special_token("eos"),
        end_ids=tuple(place for place in ends if place is not None),
        chat_template=template if isinstance(template, str) else None,
    )


def _from_folder(folder: Path) -> tuple[Backend, SpecialTokens]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(_no_tokenizer(folder))
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises nothing finer
        raise CheckpointError(f"{file}: not a tokenizer the library can read: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    config = _read_optional(folder / "tokenizer_config.json")
    special_map = _read_optional(folder / "special_tokens_map.json")
    _add_missing(backend, config.get("added_tokens_decoder"), file)
    bos, eos = (_content(config.get(name)) or _content(special_map.get(name)) for name in ("bos_token", "eos_token"))
    eos_id = backend.token_to_id(eos) if eos is not None else None
    return backend, SpecialTokens(
        bos=bos,
        eos=eos,
        end_ids=() if eos_id is None else (eos_id,),
        chat_template=chat_template(folder, config),
    )


def _no_tokenizer(folder: Path) -> str:
    advice = "name another folder or a hub id with --tokenizer"
    if (folder / "tokenizer.model").is_file():
        return (
            f"{folder}: has only tokenizer.model (SentencePiece), no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...), or {advice}"
        )
    return f"{folder}: has no tokenizer.json; {advice}"


def _add_missing(backend: Backend, listed: Any, file: Path) -> None:
    """Tokens that only tokenizer_config.json knows, as older checkpoints have them."""
    if not isinstance(listed, dict):
        return
    numbered = {int(key): token for key, token in listed.items() if key.isdecimal() and isinstance(token, dict)}
    for place, token in sorted(numbered.items()):
        content = _content(token)
        if content is None or backend.token_to_id(content) is not None:
            continue
        if place != backend.get_vocab_size(with_added_tokens=True):
            logger.warning("%s: token %d of tokenizer_config.json does not fit the vocabulary; ignored", file, place)
            continue
        added = AddedToken(content, normalized=bool(token.get("normalized")), special=bool(token.get("special")))
        (backend.add_special_tokens if added.special else backend.add_tokens)([added])


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    """A token is written as its text or as an object with the text in it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if type(token_id) is int and token_id >= 0]
