"""SpeechLLM-XL: streaming, linear-cost, decoder-only speech recognition for ESPnet recipes."""

__version__ = "0.1.0"


def __getattr__(name):
    # Importing the package stays instant; torch comes with the first use.
    if name == "Speech2Text":
        from espnet_speechllm_xl.training.compat import check_stack

        check_stack()
        from espnet_speechllm_xl.inference import Speech2Text

        return Speech2Text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
