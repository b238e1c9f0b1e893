"""SpeechLLM-XL: streaming, linear-cost, decoder-only speech recognition for ESPnet recipes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from espnet_speechllm_xl.inference import Speech2Text as Speech2Text

__version__ = "0.1.0"


def __getattr__(name: str) -> "type[Speech2Text]":
    # Importing the package stays instant; torch comes with the first use.
    if name == "Speech2Text":
        from espnet_speechllm_xl.training.compat import check_stack

        check_stack()
        from espnet_speechllm_xl.inference import Speech2Text

        return Speech2Text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
