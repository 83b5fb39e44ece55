"""The hall: a request's life from text to text. `LLM`, `LLMEngine` and `AsyncLLMEngine` are thin faces of one core.

Knows tokenizers, processes and time; reaches the devices only through `Executor`, and never imports torch itself.
"""
