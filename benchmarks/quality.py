"""What few-bit weights and 16 bits cost: perplexity of a GGUF model as it runs by default beside itself in float32.

    make check-quality                                    both embedded models; exit status 1 beyond 0.5 %
    make check-quality ARGS="--models FILE.gguf --limit 1"

By default weights are multiplied in their few bits, by activations rounded to 8 bits a block, and all else is kept in
bfloat16; in float32 the same weights are dequantized and nothing is rounded. The difference comes with its standard
error over the tokens. Both score the same tokens, in windows that know nothing of each other.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo import LLM, SamplingParams
from octavo.engine.tokenizer import Tokenizer
from octavo.kernels import cpu

MODELS = ["SmolLM2-135M-Instruct", "gemma-3-270m"]
WINDOW = 1024
# English prose that is on every machine, equal to the byte: networkx comes with torch, is pinned, and explains graph
# algorithms in its docstrings. The repository's own documents are too short and change; licences are known by heart.
PACKAGE = "networkx"
_LEAST_CHARACTERS = 100
_MARKUP = re.compile(r"[`*_=|<>\\{}\[\]]|::|\.\. ")


def docstrings(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def prose() -> str:
    """Paragraphs of whole sentences without markup, each once."""
    paragraphs = (" ".join(part.split()) for text in docstrings(PACKAGE) for part in re.split(r"\n\s*\n", text))
    kept = dict.fromkeys(
        part
        for part in paragraphs
        if len(part) >= _LEAST_CHARACTERS and part[0].isupper() and part[-1] == "." and not _MARKUP.search(part)
    )
    return "\n\n".join(kept)


def windows(tokenizer: Tokenizer, least: int) -> list[list[int]]:
    """Enough for `least` scored tokens, each beginning as the model wants texts to begin."""
    beginning = tokenizer.encode("")
    token_ids = tokenizer.encode(prose(), add_special_tokens=False)
    fresh = WINDOW - len(beginning)
    starts = range(0, len(token_ids) - fresh + 1, fresh)[: -(-least // (WINDOW - 1))]
    assert len(starts) * (WINDOW - 1) >= least, f"the text has only {len(token_ids):,} tokens"
    return [beginning + token_ids[start : start + fresh] for start in starts]


def losses(model: str, dtype: str, least: int) -> npt.NDArray[np.float64]:
    """Negative log-probability of every token but the windows' first."""
    llm = LLM(model, dtype=dtype, device="cpu", max_model_len=WINDOW + 1, enable_prefix_caching=False)
    prompts = windows(llm.get_tokenizer(), least)
    found = []
    for output in llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0)):
        scored = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [])[1:], strict=True)
        found += [-entry[token].logprob for token, entry in scored if entry is not None]
    llm.close()
    assert len(found) == len(prompts) * (WINDOW - 1)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="GGUF models (default: both embedded ones)")
    parser.add_argument("--tokens", type=int, default=20_000, help="scored tokens, at least (default 20,000)")
    parser.add_argument("--limit", type=float, default=0.5, help="most difference in %% (default 0.5)")
    arguments = parser.parse_args()
    if not cpu.available():
        raise SystemExit("without compiled kernels every model runs dequantized: there is nothing to compare")

    print(f"{'perplexity':<24} {'tokens':>8} {'default':>9} {'float32':>9} {'difference':>19}", flush=True)
    worst = 0.0
    for model in arguments.models:
        default, exact = (losses(model, dtype, arguments.tokens) for dtype in ("auto", "float32"))
        change = default - exact
        percent = 100 * np.expm1(change.mean())
        error = 100 * change.std() / np.sqrt(len(change))
        worst = max(worst, abs(percent))
        perplexities = f"{np.exp(default.mean()):9.3f} {np.exp(exact.mean()):9.3f}"
        print(f"{Path(model).stem:<24} {len(change):>8,} {perplexities} {percent:>+9.2f} ±{error:.2f} %", flush=True)
    if not worst <= arguments.limit:
        print(f"a perplexity differs by more than {arguments.limit:g} %", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
