"""ESPnet tasks, by the name that a model's ``config.yaml`` carries."""

import importlib

TASKS = {
    "speechllm_xl": "SpeechLLMXLTask",
    "ctc": "CTCTask",
    "transducer": "TransducerTask",
    "chunked_aed": "ChunkedAEDTask",
    "ctc_prompt_lm": "CTCPromptLMTask",
}  # name, which is its module's as well: class


def find_task(name):
    """The :class:`~espnet_speechllm_xl.tasks.common.SpeechTask` of a name of :data:`TASKS`; imports it."""
    return getattr(importlib.import_module(f"espnet_speechllm_xl.tasks.{name}"), TASKS[name])
