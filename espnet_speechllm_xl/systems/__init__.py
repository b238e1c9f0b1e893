"""Recognisers, one file each: settings, model, ESPnet task.  SpeechLLM-XL, and the baselines on the same encoder.

``TASKS`` finds them by the name that a model's ``config.yaml`` carries.  Never imports evaluation, sets or bin.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch and ESPnet
    from espnet_speechllm_xl.systems.base_task import SpeechTask

TASKS = {
    "speechllm_xl": "SpeechLLMXLTask",
    "ctc": "CTCTask",
    "transducer": "TransducerTask",
    "chunked_aed": "ChunkedAEDTask",
    "ctc_prompt_lm": "CTCPromptLMTask",
}  # name, which is its module's as well: class


def find_task(name: str) -> "type[SpeechTask]":
    """Import and return the task of a name of :data:`TASKS`."""
    return getattr(importlib.import_module(f"espnet_speechllm_xl.systems.{name}"), TASKS[name])
