"""Recognisers, one file each: settings, model, decoding.  SpeechLLM-XL, and the baselines on the same encoder.

``SYSTEMS`` finds them by the name that a model's ``config.yaml`` carries.  Never imports evaluation, sets or bin.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch, and ESPnet's training
    from espnet_speechllm_xl.systems.base_system import System
    from espnet_speechllm_xl.systems.base_task import SpeechTask

SYSTEMS = {
    "speechllm_xl": "SpeechLLMXLSystem",
    "ctc": "CTCSystem",
    "transducer": "TransducerSystem",
    "chunked_aed": "ChunkedAEDSystem",
    "ctc_prompt_lm": "CTCPromptLMSystem",
}  # name, which is its module's as well: class


def find_system(name: str) -> "type[System]":
    """Import and return the system of a name of :data:`SYSTEMS`."""
    return getattr(importlib.import_module(f"espnet_speechllm_xl.systems.{name}"), SYSTEMS[name])


def find_task(name: str) -> "type[SpeechTask]":
    """Import and return the ESPnet task that trains the system of a name of :data:`SYSTEMS`."""
    return find_system(name).task()
