"""The ESPnet tasks of the systems, as ESPnet and its tools find them."""

import pickle
import subprocess
import sys

import pytest
from espnet2.tasks.abs_task import AbsTask

from espnet_speechllm_xl.systems import SYSTEMS, chunked_aed, ctc, ctc_prompt_lm, find_task, speechllm_xl, transducer

TASKS = {
    "speechllm_xl": (speechllm_xl, "SpeechLLMXLTask"),
    "ctc": (ctc, "CTCTask"),
    "transducer": (transducer, "TransducerTask"),
    "chunked_aed": (chunked_aed, "ChunkedAEDTask"),
    "ctc_prompt_lm": (ctc_prompt_lm, "CTCPromptLMTask"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_module_has_the_task_of_its_system(name):
    module, task_name = TASKS[name]
    task = getattr(module, task_name)
    assert task is find_task(name) and issubclass(task, AbsTask)
    assert (task.__module__, task.__qualname__) == (f"espnet_speechllm_xl.systems.{name}", task_name)
    assert task.get_default_config()["task"] == name
    # ESPnet starts a process for each GPU with this.
    assert pickle.loads(pickle.dumps(task.main_worker)) == task.main_worker
    with pytest.raises(AttributeError, match=f"module 'espnet_speechllm_xl.systems.{name}' has no attribute 'Task'"):
        module.Task  # noqa: B018


def test_a_system_is_run_as_a_module():
    command = [sys.executable, "-m", "espnet_speechllm_xl.systems.chunked_aed", "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "\ntask: chunked_aed\n" in done.stdout, done.stderr
