"""ESPnet tasks: what ``train`` and ``train-aligner`` run."""

import contextlib
import io

# ESPnet prints a notice about an optional package to standard output, where transcripts go.
with contextlib.redirect_stdout(io.StringIO()):
    import espnet2.tasks.abs_task  # noqa: F401
