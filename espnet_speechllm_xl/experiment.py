"""What lies in the directory of a trained model, and what it is called."""

from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import DamagedWeights, read_weights
from espnet_speechllm_xl.settings import read_yaml

CONFIG, TOKENIZER, WEIGHTS = "config.yaml", "tokenizer", "model.pth"


def find_tokenizer(directory, args):
    """The copy beside the weights, else the file that training used."""
    for path in (directory / TOKENIZER, directory / f"{TOKENIZER}.model"):
        if path.exists():
            return path
    return args.tokenizer


def default_weights(directory, task):
    phase, name, _ = task.criterion
    average = f"{phase}.{name}.ave.pth"
    others = sorted(path.name for path in directory.glob("valid.*.ave.pth"))  # of another best_model_criterion
    if average not in others and len(others) == 1:
        return others[0]
    return average if average in others else WEIGHTS


def stamp(model, *files):
    """Changes when the weights (a directory's, or a packed file) or one of ``files`` do."""
    model = Path(model)
    weights = sorted(model.glob("[!.]*.pth")) if model.is_dir() else [model]
    return [[str(file), file.stat().st_mtime_ns] for file in [*weights, *map(Path, files)] if file.exists()]


def read_config(directory):
    """``config.yaml`` of a training (dict), or None before there is one; raises UserError when it cannot be read."""
    path = Path(directory) / "config.yaml"
    if not path.is_file():
        return None
    return read_yaml(path, "it is truncated; restore it or train again")


# Last parts of the names of tensors that are saved with the weights but not trained.
BUFFERS = {"mean", "std", "running_mean", "running_var", "num_batches_tracked", "inv_freq", "pe", "melmat"}


def count_parameters(directory):
    """Number of trained values in the weights of an experiment directory; None where there are none.

    Weights that two modules share count once: they are matrices that are equal in every value.  Raises UserError
    for a file that does not load.
    """
    import torch

    found = [path for path in sorted(Path(directory).glob("*.pth")) if path.name != "checkpoint.pth" and path.exists()]
    if not found:
        return None
    try:
        state = read_weights(found[0])
    except DamagedWeights as error:
        raise UserError(f"{found[0]} does not load ({error}): it is truncated; copy it again or train again") from error
    trained = [value for name, value in state.items() if name.rpartition(".")[2] not in BUFFERS]
    trained = [value for value in trained if value.is_floating_point()]
    matrices = {}
    for value in trained:
        alike = matrices.setdefault(tuple(value.shape), [])
        if value.dim() < 2 or not any(torch.equal(value, other) for other in alike):
            alike.append(value)
    return sum(value.numel() for alike in matrices.values() for value in alike)
