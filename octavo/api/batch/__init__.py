"""Files and batches that outlive the server: where they are kept, and how a batch's lines are run.

`database` and `files` know the disk, `records` what a batch is and has come to, `lines` the input's format, `runner`
how lines become answers. None of them knows HTTP or OpenAI's shapes; `octavo.api.openai.files` and `batches` do.
"""
