"""The roofline's formulas against figures worked out once by hand for an H100: 3.0 TB/s, 800 TFLOP/s, fp8 / 0.55."""

from __future__ import annotations

import pytest

from benchmarks.gpu.roofline import (
    BF16,
    FORMATS,
    FP8,
    INT4,
    LLAMA_1B,
    LLAMA_8B,
    QWEN_06B,
    QWEN_8B,
    SHAPES,
    Ceilings,
    Format,
    Load,
    Shape,
    cache_bytes,
    decode_attention_seconds,
    decode_seconds,
    offline_seconds,
    prefill_attention_seconds,
    prefill_seconds,
    product_seconds,
    weight_bytes,
)

H100 = Ceilings(bandwidth=3.0e12, bf16=800e12, fp8=800e12 / 0.55)
SEQUENCES = (1, 8, 32, 128, 256)

# Milliseconds of a step at each number of sequences.
AFTER_1K = {
    (LLAMA_8B, BF16): (5.05, 5.36, 6.43, 10.7, 16.5),
    (LLAMA_8B, FP8): (2.70, 2.86, 3.39, 5.54, 8.40),
    (LLAMA_8B, INT4): (1.59, 1.91, 2.98, 8.13, 16.3),
    (QWEN_8B, BF16): (5.10, 5.45, 6.66, 11.5, 17.9),
    (QWEN_8B, FP8): (2.76, 2.93, 3.54, 5.95, 9.17),
    (QWEN_8B, INT4): (1.66, 2.01, 3.22, 8.86, 17.7),
    (LLAMA_1B, BF16): (0.84, 0.91, 1.18, 2.26, 3.69),
    (LLAMA_1B, FP8): (0.51, 0.54, 0.68, 1.22, 1.93),
    (LLAMA_1B, INT4): (0.35, 0.43, 0.70, 1.83, 3.65),
    (QWEN_06B, BF16): (0.44, 0.71, 1.65, 5.41, 10.4),
    (QWEN_06B, FP8): (0.27, 0.41, 0.88, 2.76, 5.26),
    (QWEN_06B, INT4): (0.22, 0.49, 1.43, 5.20, 10.4),
}
AFTER_4K = {
    (LLAMA_8B, BF16): (5.18, 6.43, 10.7, 27.9, 50.8),
    (LLAMA_8B, FP8): (2.77, 3.39, 5.54, 14.1, 25.6),
    (LLAMA_8B, INT4): (1.73, 2.98, 7.28, 25.3, 50.6),
    (QWEN_8B, BF16): (5.25, 6.66, 11.5, 30.8, 56.6),
    (QWEN_8B, FP8): (2.83, 3.54, 5.95, 15.6, 28.5),
    (QWEN_8B, INT4): (1.81, 3.22, 8.05, 28.2, 56.4),
    (LLAMA_1B, BF16): (0.87, 1.18, 2.26, 6.55, 12.3),
    (LLAMA_1B, FP8): (0.52, 0.68, 1.22, 3.36, 6.23),
    (LLAMA_1B, INT4): (0.39, 0.70, 1.77, 6.12, 12.2),
    (QWEN_06B, BF16): (0.55, 1.65, 5.41, 20.4, 40.5),
    (QWEN_06B, FP8): (0.33, 0.88, 2.76, 10.3, 20.3),
    (QWEN_06B, INT4): (0.34, 1.43, 5.19, 20.2, 40.5),
}
PREFILL = {  # milliseconds of 512, 2,048, 8,192 and 32,768 tokens
    LLAMA_8B: (9.0, 37.1, 164.9, 923.6),
    QWEN_8B: (9.0, 37.1, 167.0, 964.8),
    LLAMA_1B: (1.3, 5.3, 25.4, 167.7),
    QWEN_06B: (0.6, 2.9, 18.6, 190.0),
}
GIGABYTES = {
    LLAMA_8B: (15.01, 8.03, 4.65),
    QWEN_8B: (15.14, 8.19, 4.83),
    LLAMA_1B: (2.47, 1.50, 1.03),
    QWEN_06B: (1.19, 0.75, 0.54),
}


def near(figure: float) -> object:
    """As exact as three digits, or one after the point, are."""
    return pytest.approx(figure, rel=0.006, abs=0.05 if figure < 10 and figure * 10 % 1 == 0 else 0.005)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_sizes(shape: Shape) -> None:
    billions = {"Llama-3.1-8B": (6.979, 0.525, 128), "Qwen3-8B": (6.946, 0.622, 144),
                "Llama-3.2-1B": (0.973, 0.263, 32), "Qwen3-0.6B": (0.440, 0.156, 112)}  # fmt: skip
    linear, head, kibibytes = billions[shape.name]
    assert shape.linear_weights / 1e9 == pytest.approx(linear, abs=5e-4)
    assert shape.head_weights / 1e9 == pytest.approx(head, abs=5e-4)
    assert cache_bytes(shape, BF16) == kibibytes * 1024
    assert [weight_bytes(shape, form) / 1e9 for form in FORMATS] == pytest.approx(GIGABYTES[shape], abs=0.006)


@pytest.mark.parametrize("context", [1024, 4096])
def test_decoding(context: int) -> None:
    for (shape, form), floors in (AFTER_1K if context == 1024 else AFTER_4K).items():
        for sequences, floor in zip(SEQUENCES, floors, strict=True):
            assert decode_seconds(shape, form, sequences, context, H100) * 1e3 == near(floor), (shape, form, sequences)


def test_prefill() -> None:
    for shape, floors in PREFILL.items():
        for tokens, floor in zip((512, 2048, 8192, 32768), floors, strict=True):
            assert prefill_seconds(shape, BF16, tokens, H100) * 1e3 == near(floor), (shape.name, tokens)


def test_bytes_and_operations_meet_at_some_number_of_sequences() -> None:
    knee = H100.bf16 / H100.bandwidth
    assert knee == pytest.approx(267, abs=0.5)
    few, many = (decode_seconds(LLAMA_8B, BF16, round(knee * share), 0, H100) for share in (0.9, 2))
    assert few == weight_bytes(LLAMA_8B, BF16) / H100.bandwidth
    assert many == pytest.approx(2 * few, rel=0.01)


def test_a_load_takes_its_prompts_and_its_steps() -> None:
    load = Load(requests=512, prompt=1000, output=1000)
    prompts = 512 * prefill_seconds(LLAMA_8B, FP8, 1000, H100)
    steps = 2 * 1000 * decode_seconds(LLAMA_8B, FP8, 256, 1500, H100)
    assert offline_seconds(LLAMA_8B, FP8, load, 256, H100) == pytest.approx(prompts + steps)
    assert offline_seconds(LLAMA_8B, FP8, load, 512, H100) < prompts + steps
    assert str(load) == "1000/1000"


def test_the_parts_of_a_step_add_up_to_it() -> None:
    layer = [size for name, size in LLAMA_8B.matrices().items() if name != "head"]
    assert 32 * sum(outputs * inputs for outputs, inputs in layer) == LLAMA_8B.linear_weights
    attention = 32 * decode_attention_seconds(LLAMA_8B, FP8, 64, 4096, H100)
    without, whole = (decode_seconds(LLAMA_8B, FP8, 64, context, H100) for context in (0, 4096))
    assert attention == pytest.approx(whole - without)
    quadratic = prefill_seconds(LLAMA_8B, BF16, 8192, H100) - 2 * prefill_seconds(LLAMA_8B, BF16, 4096, H100)
    assert 32 * prefill_attention_seconds(LLAMA_8B, 8192, H100) / 2 == pytest.approx(quadratic, rel=0.001)


@pytest.mark.parametrize(("rows", "seconds"), [(1, 33.6e6 / 3e12), (4096, 2 * 4096**3 / 800e12)])
def test_a_product_reads_or_computes(rows: int, seconds: float) -> None:
    assert product_seconds(rows, (4096, 4096), BF16, H100) == pytest.approx(seconds, rel=0.01)


def test_what_a_gpu_has_no_units_for_runs_in_16_bits() -> None:
    old = Ceilings(1e12, 100e12)
    form = Format("fp8", 1.0, 1.0, "fp8")
    assert prefill_seconds(QWEN_06B, form, 64, old) == prefill_seconds(QWEN_06B, BF16, 64, old)
