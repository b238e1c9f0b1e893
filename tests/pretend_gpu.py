"""A pretended GPU, to find operations that mix devices where there is none.

    with pretend_gpu() as gpu:
        model.to("cuda")(batch)     # raises MixedDevicesError where CUDA would
    gpu.waits                       # how often the CPU would have waited for the GPU, by operation

Tensors of device "cuda" live on the CPU under a label, which every operation hands on to its results.  An operation
on tensors of both labels raises, with CUDA's exceptions: numbers (0 dimensions) of the CPU go with anything, a GPU
tensor may be indexed by a CPU tensor and copied into from one.  Threads that begin inside the block pretend, too, and
mixed precision is that of the CPU.  What runs inside one call of torch (a loss, an LSTM) is seen from outside only.

A tensor whose label is lost counts as one of the CPU, so that a gap in this file shows as an error, not as a pass.
"""

import contextlib
import threading
from collections import Counter
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
NEW = ("tensor", "from_numpy", "frombuffer")  # their results are on the CPU but for a ``device``
NUMBERS = ("tolist", "item", "__int__", "__float__", "__bool__", "__index__", "equal", "allclose")
WAITS = (*NUMBERS, "nonzero", "masked_select", "unique", "repeat_interleave")
MOVING = ("copy_", "set_", "_has_compatible_shallow_copy_type")  # from one device to the other
# CUDA's kernels take the lengths of a CTC loss from either device.
LENGTHS_ANYWHERE = {"ctc_loss": 2}


class MixedDevicesError(RuntimeError):
    """An operation that CUDA would refuse."""


def is_on_gpu(tensor):
    return getattr(tensor, "_pretends", False)


@contextlib.contextmanager
def pretend_gpu():
    """Pretend within the block, in this thread and in those that begin in it."""
    mode = _Pretending()
    run_thread, begin_autocast, load = threading.Thread.run, torch.autocast.__init__, torch.load

    def run(thread):
        with _Pretending(mode.waits):
            run_thread(thread)

    def autocast(self, device_type, *args, **options):
        begin_autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **options)

    def load_to(*args, map_location=None, **options):
        if not isinstance(map_location, (str, torch.device)):
            return load(*args, map_location=map_location, **options)
        return _labelled(load(*args, map_location="cpu", **options), _names_gpu(map_location))

    with (
        mock.patch.object(threading.Thread, "run", run),
        mock.patch.object(torch.autocast, "__init__", autocast),
        mock.patch.object(torch, "load", load_to),
        mock.patch.object(torch.cuda, "current_device", lambda: GPU.index),
        # There are no kernels of cuDNN; oneDNN has no LSTM in half precision for every CPU.
        torch.backends.cudnn.flags(enabled=False),
        torch.backends.mkldnn.flags(enabled=False),
        mode,
    ):
        yield mode


class _Pretending(TorchFunctionMode):
    def __init__(self, waits=None):
        super().__init__()
        self.waits = Counter() if waits is None else waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in ("__get__", "__set__"):
            return self._attribute(func, name, args)
        if name == "_parse_to":  # of ``Module.to(device=...)``: the tensors are moved one by one
            return func(*args, **kwargs)
        if name in ("to", "cuda", "cpu"):
            return self._moved(func, name, args, kwargs)
        if name in ("numpy", "__array__") and is_on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        device = kwargs.get("device")
        if device is not None and _names_gpu(device):
            kwargs["device"] = "cpu"
        self._refuse_mix(name, args, tensors)
        on_gpu = any(map(is_on_gpu, tensors))
        if on_gpu and (name in WAITS or self._indexes_by_mask(name, args)):
            self.waits[name] += 1
        out = func(*args, **kwargs)
        if name in NUMBERS or (name.endswith("_") and tensors and out is tensors[0]):
            return out
        if device is not None:
            on_gpu = _names_gpu(device)
        elif name in NEW:
            on_gpu = False
        elif name == "__getitem__":
            on_gpu = is_on_gpu(args[0])
        return _labelled(out, on_gpu)

    def _attribute(self, func, name, args):
        owner = getattr(func, "__self__", None)
        if name == "__set__":
            func(*args)
            if owner is torch.Tensor.data:
                _labelled(args[0], is_on_gpu(args[1]))
            return None
        if owner is torch.Tensor.device:
            return GPU if is_on_gpu(args[0]) else func(*args)
        if owner is torch.Tensor.is_cuda:
            return is_on_gpu(args[0])
        return _labelled(func(*args), is_on_gpu(args[0]))

    def _moved(self, func, name, args, kwargs):
        """Answer ``tensor.to(...)``, ``cuda()``, ``cpu()``; a tensor that moves becomes another one."""
        tensor, rest = args[0], []
        target = is_on_gpu(tensor) if name == "to" else name == "cuda"
        if name == "to":
            for each in args[1:]:
                if isinstance(each, (torch.device, str)) or type(each) is int:
                    target = _names_gpu(each)
                    each = "cpu" if target else each
                elif isinstance(each, torch.Tensor):
                    target = is_on_gpu(each)
                rest.append(each)
            if kwargs.get("device") is not None:
                target = _names_gpu(kwargs["device"])
                kwargs["device"] = "cpu" if target else kwargs["device"]
            out = func(tensor, *rest, **kwargs)
        else:
            out = tensor
        if is_on_gpu(tensor) and not target:
            self.waits[name] += 1
        if out is tensor and target != is_on_gpu(tensor):
            out = tensor.clone()  # not in place: the old one stays where it was
        return _labelled(out, target)

    @staticmethod
    def _indexes_by_mask(name, args):
        return name in ("__getitem__", "__setitem__") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )

    @staticmethod
    def _refuse_mix(name, args, tensors):
        if name in LENGTHS_ANYWHERE:
            tensors = tensors[: LENGTHS_ANYWHERE[name]]
        sizable = {is_on_gpu(tensor) for tensor in tensors if tensor.dim() > 0}
        mixed = len(sizable) > 1
        if name in MOVING:
            return
        if mixed and name in ("__getitem__", "__setitem__", "index_put_") and is_on_gpu(args[0]):
            # A CPU index will do; CPU values only where a slice is copied into.
            by_tensor = any(isinstance(leaf, (torch.Tensor, bool)) for leaf in tree_leaves(args[1]))
            values = args[2] if len(args) > 2 and isinstance(args[2], torch.Tensor) else None
            mixed = by_tensor and values is not None and values.dim() > 0 and not is_on_gpu(values)
        numbers_of_gpu = sizable == {False} and any(is_on_gpu(tensor) for tensor in tensors if tensor.dim() == 0)
        # A number of the GPU is taken out as it is where an index or a size is wanted.
        if mixed or (numbers_of_gpu and name != "__getitem__"):
            shapes = ", ".join(f"{'cuda' if is_on_gpu(tensor) else 'cpu'}{list(tensor.shape)}" for tensor in tensors)
            raise MixedDevicesError(f"{name}: expected all tensors to be on the same device: {shapes}")


def _names_gpu(device):
    return torch.device(device).type == "cuda"


def _labelled(out, on_gpu):
    for leaf in tree_leaves(out):
        if isinstance(leaf, torch.Tensor):
            leaf._pretends = on_gpu
    return out
