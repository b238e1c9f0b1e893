"""Systems that SpeechLLM-XL is compared with, on the same encoder, data and scoring."""
