"""Pretrained language models as files: fetched, converted from GGUF, described, merged; what training them costs."""
