"""Task of the chunked AED, a baseline."""

from espnet2.train.class_choices import ClassChoices

from espnet_speechllm_xl.baselines.chunked_aed import ChunkedAED, LabelDecoder
from espnet_speechllm_xl.tasks.chunkwise import ChunkwiseTask


class ChunkedAEDTask(ChunkwiseTask):
    """Chunked AED (arXiv 2309.08436)."""

    name = "chunked_aed"
    model_class = ChunkedAED
    decoder_choices = ClassChoices("decoder", classes={"label": LabelDecoder}, default="label")


if __name__ == "__main__":
    ChunkedAEDTask.main()
