"""`lm-eval`: a local multiple-choice task by its `local-completions` model, beside transformers in float32."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
URL, FLOAT_MODEL, GGUF, SCRATCH = sys.argv[1:5]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from checks import check  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

WITHIN = 0.005  # of a log-probability
gguf = Path(GGUF)
tokenizer = Path(SCRATCH) / "tokenizer"
AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(tokenizer)
os.chdir(HERE / "lm_eval_task")  # the task names its data by a relative path


def evaluate(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    tasks = TaskManager(include_path=str(HERE / "lm_eval_task"), include_defaults=False)
    found = simple_evaluate(
        model=model, model_args=arguments, tasks=["octavo_capitals"], task_manager=tasks, batch_size=1, log_samples=True
    )
    assert found is not None
    return found


def likelihoods(found: dict[str, Any]) -> dict[tuple[int, int], float]:
    """The log-probability of each choice of each question."""
    return {
        (sample["doc_id"], place): float(answer[0][0] if isinstance(answer[0], list | tuple) else answer[0])
        for sample in found["samples"]["octavo_capitals"]
        for place, answer in enumerate(sample["resps"])
    }


with check("log-probabilities are transformers' within 0.5 %") as notes:
    ours = evaluate(
        "local-completions",
        {
            "model": FLOAT_MODEL,
            "base_url": f"{URL}/v1/completions",
            "tokenizer": str(tokenizer),
            "tokenized_requests": True,
            "num_concurrent": 4,
            "max_retries": 1,
        },
    )
    whole = {"pretrained": str(gguf.parent), "gguf_file": gguf.name, "dtype": "float32", "device": "cpu"}
    theirs = evaluate("hf", whole)
    mine, reference = likelihoods(ours), likelihoods(theirs)
    assert mine.keys() == reference.keys()
    worst = max(abs(mine[key] / reference[key] - 1) for key in mine)
    accuracy = [found["results"]["octavo_capitals"]["acc,none"] for found in (ours, theirs)]
    notes.append(
        f"{len(mine)} answers, at most {100 * worst:.4f} % apart, accuracy {accuracy[0]:.3f}, {accuracy[1]:.3f}"
    )
    assert worst <= WITHIN
    assert accuracy[0] == accuracy[1]
