"""The environment scripts: what install.sh decides (with stand-ins for Python and pip, so without network), path.sh,
the job runner of cmd.sh, the metadata of setup.py, and that every shell script passes shellcheck."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]

# Answers what install.sh asks a Python and its pip, and writes down every call. Packages "are installed" once a
# `pip install` has made the file `packages` beside it; files named no_venv and no_pip there take something away.
STAND_IN = r"""#!/usr/bin/env bash
here=$(dirname "$0")
printf '%s\n' "$*" | head -n 1 >>"$CALLS"
case "$*" in
  "-c import sys; print"*) cat "$here/$(basename "$0").version" ;;
  "-c import sys; from importlib"*) [ -e "$here/packages" ] ;;
  "-c import ensurepip") [ ! -e "$here/$(basename "$0").no_venv" ] ;;
  "-c from importlib.metadata import version; print(version"*) cat "$here/espnet" 2>/dev/null ;;
  "-") if [ -e "$here/packages" ]; then cat "$here/after"; else cat "$here/before"; fi 2>/dev/null || true ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$here/$(basename "$0").version" "$3/bin/python.version"
    ;;
  "-m pip --version") [ ! -e "$here/no_pip" ] ;;
  "-m ensurepip") rm "$here/no_pip" ;;
  "-m pip install -q --no-deps --target "*) ;;
  "- espnet_speechllm_xl"*) printf '%s\n' "espnet==202511" "torch>=2.11" ;;
  "- espnet "*) printf '%s\n' "pyworld>=0.3.4" "numpy>=2.0.0" ;;
  *"/pip wheel "*) [ "${NO_COMPILER:-0}" = 0 ] ;;
  "-m pip install "* | *"/pip install "*)
    env | grep -E '^(PIP_TARGET|PIP_PREFIX|PIP_ROOT|PIP_DRY_RUN|PYTHONPATH)=' >>"$CALLS"
    [ -z "${PIP_SLEEPS:-}" ] || { touch "$here/half"; sleep "$PIP_SLEEPS"; }
    if [ "${PIP_FAILS:-0}" = 1 ]; then echo "ERROR: no network today"; exit 1; fi
    [ "${@: -2:1}" != -r ] || sed 's/^/required: /' "${@: -1}" >>"$CALLS"
    touch "$here/packages"
    ;;
  "-W ignore -") echo "Python stands in" ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""
NAMES = ["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python"]


class Sandbox:
    """A copy of the scripts in a folder of its own, with stand-ins first on PATH."""

    def __init__(self, folder: Path, tools: Path):
        self.repo, self.bin, self.calls = folder / "a repo", folder / "bin", folder / "calls"
        (self.repo / "local").mkdir(parents=True)
        self.bin.mkdir()
        self.calls.touch()
        for name in ["setup.py", "pyproject.toml", "local/install.sh", "local/espnet202511.sh", "local/lock.sh",
                     "local/env.sh", "local/path.sh"]:  # fmt: skip
            shutil.copy(ROOT / name, self.repo / name)
        self.env = {"PATH": f"{self.bin}:{tools}", "CALLS": str(self.calls), "HOME": str(folder)}
        self.venv = self.repo / ".venv"

    def python(self, where: Path, **versions: str) -> None:
        where.mkdir(parents=True, exist_ok=True)
        for name, version in versions.items():
            name = name.replace("_", ".")
            (where / name).write_text(STAND_IN)
            (where / name).chmod(0o755)
            (where / f"{name}.version").write_text(version + "\n")

    def install(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        self.calls.write_text("")
        command = [str(self.repo / "local/install.sh"), *args]
        return subprocess.run(command, env={**self.env, **env}, capture_output=True, text=True, timeout=60)

    def pip_installs(self) -> list[str]:
        """Those into the environment: not that of a pip of its own."""
        lines = self.calls.read_text().splitlines()
        return [line for line in lines if "pip install " in line and "--target" not in line]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The system's commands without its Pythons."""
    folder = tmp_path_factory.mktemp("tools")
    for path in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        if not path.name.startswith(("python", "uv")) and not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def sandbox(tmp_path, tools):
    return Sandbox(tmp_path, tools)


def test_takes_the_newest_python_in_range(sandbox):
    sandbox.python(sandbox.bin, python3="3.14", python3_12="3.9", python3_11="3.11", python="3.10")
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert f"making {sandbox.venv} with {sandbox.bin}/python3.11" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"install.sh: environment {sandbox.venv} is ready: Python stands in")


def test_a_newer_python_beside_the_default_one_is_taken(sandbox):
    sandbox.python(sandbox.bin, python3="3.11", python3_12="3.12", python3_13="3.13")
    assert f"with {sandbox.bin}/python3.13" in sandbox.install().stderr


def test_a_python_without_its_venv_module_is_passed_over_or_named(sandbox):
    sandbox.python(sandbox.bin, python3="3.11", python3_12="3.12", python3_13="3.13")
    for name in ("python3.13", "python3"):
        (sandbox.bin / f"{name}.no_venv").touch()
    assert f"with {sandbox.bin}/python3.12" in sandbox.install().stderr
    shutil.rmtree(sandbox.venv)
    (sandbox.bin / "python3.12.no_venv").touch()
    done = sandbox.install()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "apt install python3.13-venv (Debian, Ubuntu)" in done.stderr


def test_python_option_wins_over_path(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    sandbox.python(sandbox.repo / "other", mine="3.12")
    mine = str(sandbox.repo / "other/mine")
    os.symlink(mine, sandbox.bin / "mine")
    os.symlink(mine + ".version", sandbox.bin / "mine.version")
    assert f"with {sandbox.bin}/mine" in sandbox.install("--python", "mine").stderr


def test_python_option_may_hold_spaces(sandbox):
    sandbox.python(sandbox.repo / "my own", python3="3.12")
    mine = str(sandbox.repo / "my own/python3")
    assert f"with {mine}" in sandbox.install("--python", mine).stderr


def test_settings_that_send_packages_elsewhere_do_not_count(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    elsewhere = dict.fromkeys(("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN", "PYTHONPATH"), "/elsewhere")
    assert sandbox.install(**elsewhere).returncode == 0
    assert sandbox.pip_installs() and "/elsewhere" not in sandbox.calls.read_text()


def test_refuses_unsupported_pythons_in_one_line(sandbox):
    sandbox.python(sandbox.bin, **{name.replace(".", "_"): "3.14" for name in NAMES})
    done = sandbox.install()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "needs Python 3.10 to 3.13" in done.stderr and "python3.10 is 3.14" in done.stderr
    for way in ("apt install python3.13", "dnf install", "conda create", "uv python install 3.13", "--python"):
        assert way in done.stderr
    assert not sandbox.venv.exists()


def test_active_environment_is_used_or_refused(sandbox, tmp_path):
    env = tmp_path / "active"
    sandbox.python(env / "bin", python="3.14")
    done = sandbox.install(VIRTUAL_ENV=str(env))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{env} has Python 3.14" in done.stderr and "deactivate" in done.stderr
    sandbox.python(env / "bin", python="3.12")
    assert sandbox.install(CONDA_PREFIX=str(env), CONDA_DEFAULT_ENV="speech").returncode == 0
    assert (env / "bin/packages").exists() and not sandbox.venv.exists()
    assert not any("-m venv" in line for line in sandbox.calls.read_text().splitlines())
    assert sandbox.install("--python", "python3", VIRTUAL_ENV=str(tmp_path / "new")).returncode == 1


def test_conda_base_does_not_count_as_active(sandbox, tmp_path):
    sandbox.python(sandbox.bin, python3="3.10")
    assert sandbox.install(CONDA_PREFIX=str(tmp_path), CONDA_DEFAULT_ENV="base").returncode == 0
    assert (sandbox.venv / "bin/packages").exists()


def test_second_run_returns_at_once_until_something_changes(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    assert sandbox.install().returncode == 0
    assert len(sandbox.pip_installs()) == 1
    start = time.monotonic()
    done = sandbox.install()
    assert time.monotonic() - start < 1
    assert done.returncode == 0 and sandbox.pip_installs() == []
    assert done.stderr == f"install.sh: environment {sandbox.venv} is ready\n"

    assert sandbox.install("--extras", "test").returncode == 0
    assert sandbox.pip_installs()[0].endswith(f"-e {sandbox.repo}[test]")
    for args in [("--extras", "test"), ()]:
        assert sandbox.install(*args).returncode == 0 and sandbox.pip_installs() == []

    with open(sandbox.repo / "setup.py", "a") as file:
        file.write("# changed\n")
    done = sandbox.install()
    assert sandbox.pip_installs()[0].endswith("[test]"), "what was installed before must stay"
    assert sandbox.install("--extras", "docs").returncode == 0
    assert sandbox.pip_installs()[0].endswith("[docs,test]"), "as an extra beside another"
    for args in [("--extras", "test,docs"), ("--extras", "docs"), ("--extras", "test")]:
        assert sandbox.install(*args).returncode == 0 and sandbox.pip_installs() == []
    assert "making" not in done.stderr


def test_where_no_lock_can_be_had_it_installs_and_says_so(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    flock = sandbox.bin / "flock"
    flock.write_text("#!/bin/sh\necho 'flock: 9: No locks available' >&2\nexit 71\n")
    flock.chmod(0o755)
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert f"install.sh: no lock can be had on {sandbox.venv} (flock: 9: No locks available): going on" in done.stderr


def test_an_environment_that_cannot_be_made_is_one_line(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    sandbox.venv.touch()
    done = sandbox.install()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{sandbox.venv}/.speechllm_xl.incomplete cannot be written: " in done.stderr and "mend that" in done.stderr


def test_a_killed_installation_starts_again(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    half = sandbox.venv / "bin/half"
    command = [str(sandbox.repo / "local/install.sh")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**sandbox.env, "PIP_SLEEPS": "3"}, start_new_session=True, **quiet) as process:
        deadline = time.monotonic() + 20
        while not half.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert half.exists()
        os.killpg(process.pid, signal.SIGKILL)
    packages = sandbox.venv / "lib/python3.11/site-packages"
    for name in ["half-1.0.dist-info/METADATA", "whole-1.0.dist-info/METADATA", "whole-1.0.dist-info/RECORD"]:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    done = sandbox.install()  # waits for the pip left behind, then completes what it did
    assert done.returncode == 0, done.stderr
    assert "was cut off: completing it" in done.stderr and "making" not in done.stderr
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]
    assert half.exists(), "an environment that runs is never removed"
    assert sandbox.install().stderr.endswith("is ready\n") and sandbox.pip_installs() == []


def test_an_interrupted_installation_leaves_no_pip_behind(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    half = sandbox.venv / "bin/half"
    command = [str(sandbox.repo / "local/install.sh")]
    with subprocess.Popen(command, env={**sandbox.env, "PIP_SLEEPS": "60"}, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not half.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=20) == 143
    done = sandbox.install()
    assert done.returncode == 0 and "waiting for it" not in done.stderr


def test_two_at_a_time_install_once(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    command = [str(sandbox.repo / "local/install.sh")]
    env = {**sandbox.env, "PIP_SLEEPS": "2"}
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(sandbox.pip_installs()) == 1
    assert sum("waiting for it" in text for text in said) == 1
    assert list(sandbox.venv.glob(".speechllm_xl.incomplete")) == []


def test_a_failed_pip_is_shown_and_its_work_is_kept(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    done = sandbox.install(PIP_FAILS="1")
    assert done.returncode == 1
    assert "no network today" in done.stderr and ".speechllm_xl.log" in done.stderr.splitlines()[-1]
    kept = sandbox.venv / "kept"
    kept.touch()
    done = sandbox.install()
    assert done.returncode == 0 and kept.exists() and "making" not in done.stderr


def test_without_a_compiler_pyworld_is_left_out(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    done = sandbox.install(NO_COMPILER="1")
    assert done.returncode == 0 and "pyworld does not build here" in done.stderr
    required = [line for line in sandbox.calls.read_text().splitlines() if line.startswith("required: ")]
    assert required == ["required: espnet==202511", "required: torch>=2.11", "required: numpy>=2.0.0"]


@pytest.fixture
def active(sandbox, tmp_path):
    """A user's environment of Python 3.13: its folder ``bin``, and how it is installed into."""
    folder = tmp_path / "active/bin"
    sandbox.python(folder, python="3.13")
    return folder, lambda **env: sandbox.install(VIRTUAL_ENV=str(folder.parent), **env)


def test_only_old_pythons_need_a_pip_of_their_own(sandbox):
    for version, private in (("3.10", True), ("3.11", True), ("3.12", False), ("3.13", False)):
        sandbox.python(sandbox.bin, python3=version)
        assert sandbox.install().returncode == 0
        calls = sandbox.calls.read_text()
        assert ("--target" in calls) == private and ("pyworld" in calls) == private
        assert sandbox.pip_installs()[0].endswith(f"pip install -e {sandbox.repo}") or private
        shutil.rmtree(sandbox.venv)


def test_an_old_espnet_in_a_newer_python_is_kept(sandbox, active):
    folder, install = active
    (folder / "espnet").write_text("202511\n")
    assert install().returncode == 0
    assert "pip==25.3" in sandbox.calls.read_text()


@pytest.mark.parametrize("found", ["202509", "202612", "0.10.6"])
def test_another_espnet_is_left_alone(sandbox, active, found):
    folder, install = active
    (folder / "espnet").write_text(f"{found}\n")
    done = install()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"has ESPnet {found}; supported are 202511 and 202609 to 202611" in done.stderr
    assert sandbox.pip_installs() == []


def test_what_was_replaced_in_a_users_environment_is_said(active):
    folder, install = active
    (folder / "before").write_text("jiwer 3.0\nnumpy 2.1\ntorch 2.9.1\n")
    (folder / "after").write_text("jiwer 4.0\nnumpy 2.1\npeft 0.21\ntorch 2.14.1\n")
    done = install()
    said = f"replaced in {folder.parent}, as setup.py needs it: "
    assert f"{said}jiwer 3.0 by 4.0, torch 2.9.1 by 2.14.1\n" in done.stderr
    (folder / "before").write_text("numpy 2.1\n")
    (folder / "packages").unlink()
    (folder.parent / ".speechllm_xl.complete").unlink()
    assert said not in install().stderr


@pytest.mark.parametrize(
    ("torch", "torchaudio", "wanted"),
    [("2.11.0", "2.11.1", True), ("2.11.0", "2.11.0", False), ("2.14.1", "2.11.1", False)],
)
def test_torchaudio_fits_torch(sandbox, active, torch, torchaudio, wanted):
    folder, install = active
    (folder / "after").write_text(f"torch {torch}\ntorchaudio {torchaudio}\n")
    assert install().returncode == 0
    assert any("--no-deps torchaudio==2.11.0" in line for line in sandbox.pip_installs()) == wanted


def test_an_environment_without_pip(sandbox, active):
    folder, install = active
    (folder / "no_pip").touch()
    (sandbox.bin / "uv").write_text(f'#!/bin/sh\necho "uv $*" >>"$CALLS"; touch {folder}/packages\n')
    (sandbox.bin / "uv").chmod(0o755)
    assert install().returncode == 0
    assert f"uv pip install --python {folder}/python -e {sandbox.repo}" in sandbox.calls.read_text()
    (sandbox.bin / "uv").unlink()
    (folder.parent / ".speechllm_xl.complete").unlink()
    assert install().returncode == 0
    assert "-m ensurepip" in sandbox.calls.read_text() and len(sandbox.pip_installs()) == 1


def test_an_environment_whose_python_has_gone_is_made_again(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    assert sandbox.install().returncode == 0
    (sandbox.venv / "bin/python").unlink()
    (sandbox.venv / "bin/python").symlink_to("/nowhere/python3")
    done = sandbox.install()
    assert done.returncode == 0 and f"making {sandbox.venv}" in done.stderr
    assert not (sandbox.venv / "bin/python").is_symlink()


def test_an_environment_of_other_hands_is_only_completed(sandbox):
    sandbox.python(sandbox.venv / "bin", python="3.11")
    (sandbox.venv / "kept").touch()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sandbox.repo / "local/install.sh"], env={**sandbox.env, "PIP_SLEEPS": "4"}, timeout=2)
    assert sandbox.install().returncode == 0
    assert (sandbox.venv / "kept").exists() and (sandbox.venv / "bin/packages").exists()


def test_a_folder_that_is_no_environment_is_not_removed(sandbox):
    sandbox.python(sandbox.bin, python3="3.11")
    sandbox.venv.mkdir()
    (sandbox.venv / "thesis.tex").touch()
    done = sandbox.install()
    assert done.returncode == 1 and "is in the way" in done.stderr
    assert [path.name for path in sandbox.venv.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("args", [["--extra", "test"], ["--extras"], ["--extras", "tests"], ["--extras", "test,doc"]])
def test_wrong_use_is_told(sandbox, args):
    done = sandbox.install(*args)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_path_sh_needs_packages_and_sets_the_environment(sandbox):
    script = 'set -eu; . local/path.sh; echo "$PYTHONPATH|$LC_ALL|$OMP_NUM_THREADS|$(command -v python)"'

    def source(**env):
        return subprocess.run(
            ["bash", "-c", script], cwd=sandbox.repo, env={**sandbox.env, **env}, capture_output=True, text=True
        )

    done = source()
    assert done.returncode != 0 and "local/install.sh" in done.stderr and len(done.stderr.splitlines()) == 1
    sandbox.python(sandbox.bin, python3="3.11")
    sandbox.install()
    threads = min(len(os.sched_getaffinity(0)), 8)
    assert source().stdout == f"{sandbox.repo}|C|{threads}|{sandbox.venv}/bin/python\n"
    own = sandbox.repo.parent / "own"
    sandbox.python(own / "bin", python="3.11")
    (own / "bin/packages").touch()
    done = source(VIRTUAL_ENV=str(own), PYTHONPATH="/x", OMP_NUM_THREADS="3")
    assert done.stdout == f"{sandbox.repo}:/x|C|3|{own}/bin/python\n"


def setup_arguments() -> dict:
    caught = {}
    original, setuptools.setup = setuptools.setup, lambda **kwargs: caught.update(kwargs)
    try:
        exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__name__": "__main__"})
    finally:
        setuptools.setup = original
    return caught


def test_every_requirement_is_bounded_and_met_here():
    arguments = setup_arguments()
    extras = arguments["extras_require"]
    for line in extras["docs"]:
        assert {one.operator for one in Requirement(line).specifier} == {">=", "<"}, line
    every = [Requirement(line) for line in arguments["install_requires"] + extras["test"]]
    for requirement in every:
        operators = {specifier.operator for specifier in requirement.specifier} - {"!="}
        assert operators in ({">=", "<"}, {"=="}), requirement
    requirements = [one for one in every if one.marker is None or one.marker.evaluate()]
    assert len({requirement.name for requirement in requirements}) == len(requirements)
    for requirement in requirements:
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), requirement


def test_shell_and_metadata_agree_on_the_pythons():
    wanted = SpecifierSet(setup_arguments()["python_requires"])
    versions = [f"3.{minor}" for minor in range(6, 20)]
    script = f'. local/env.sh; for v in {" ".join(versions)}; do ! is_supported "$v" || echo "$v"; done'
    supported = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert supported.split() == [version for version in versions if version in wanted]


def test_console_script_is_quick():
    command = Path(sys.executable).with_name("speechllm-xl")
    times = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
        times.append(time.monotonic() - start)
        assert done.returncode == 0 and "transcribe" in done.stdout, done.stderr
    assert min(times) < 1


def test_shell_scripts_pass_shellcheck():
    made_by_recipes = {"data", "dump", "exp", "downloads"}
    scripts = [ROOT / ".ci/run"]
    for folder in ["local", "tests", "egs2"]:
        for path in sorted((ROOT / folder).rglob("*.sh")):
            if not made_by_recipes & set(path.relative_to(ROOT).parts[:-1]):
                scripts.append(path)
    assert ROOT / "local/install.sh" in scripts
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing: local/install.sh --extras test"
    done = subprocess.run([shellcheck, "-x", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def run_shell(script: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    script = f"set -euo pipefail; . {ROOT}/local/cmd.sh; {script}"
    env = {**os.environ, "cmd_backend": "local", **env}
    return subprocess.run(["bash", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_jobs_run_side_by_side_and_number_their_logs(tmp_path):
    job = 'touch @JOB@; until [ -e 1 ] && [ -e 2 ] && [ -e 3 ]; do sleep 0.05; done; echo part @JOB@; echo "a b" @JOB@'
    command = f"decode_cmd --progress '^part' 3 logs/x.@JOB@.log bash -c '{job}'"
    done = run_shell(command, tmp_path)
    assert done.returncode == 0 and done.stdout == "part 1\n"
    for job in "123":
        lines = (tmp_path / f"logs/x.{job}.log").read_text().splitlines()
        assert lines[2:4] == [f"part {job}", f"a b {job}"]
        assert lines[4].startswith("# ended with status 0 after ")


def test_threads_are_divided_among_jobs(tmp_path):
    cores = len(os.sched_getaffinity(0))
    for nj in (1, cores, 2 * cores):
        run_shell(f"train_cmd {nj} @JOB@.log printenv OMP_NUM_THREADS", tmp_path, OMP_NUM_THREADS="64")
        assert (tmp_path / "1.log").read_text().splitlines()[2] == str(max(cores // nj, 1))


def test_failures_are_named_with_log_and_tail(tmp_path):
    done = run_shell("train_cmd 3 x.@JOB@.log bash -c 'echo bad news @JOB@; exit $((@JOB@ - 1))'; echo on", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("run_jobs: 2 of 3 jobs failed (2 3); the end of x.2.log:\n")
    assert "  | bad news 2\n" in done.stderr and "with status 1" in done.stderr
    done = run_shell("train_cmd 1 x.log bash -c 'kill -9 $PPID'", tmp_path)
    assert done.returncode == 1 and "stopped from outside" in done.stderr


@pytest.mark.parametrize(
    "job, says",
    [
        ("kill -9 $$", "it was killed, most often because memory ran out"),
        ("kill -SEGV $$", "it crashed in native code (SIGSEGV)"),
        ("kill -BUS $$", "it crashed (SIGBUS): the disk or /dev/shm is full"),
        ("kill -TERM $$", "it was stopped from outside: run the stage again"),
        ("exit 3", "# ended with status 3"),
    ],
)
def test_the_cause_of_a_jobs_death_is_told(tmp_path, job, says):
    done = run_shell(f"train_cmd 1 x.log bash -c '{job}'", tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and says in last and last.startswith("run_jobs: " if "ended" not in says else "  | ")


@pytest.mark.skipif(not shutil.which("unshare"), reason="no mount namespaces here")
def test_a_log_on_a_full_disk_is_told(tmp_path):
    script = (
        f'mount -t tmpfs -o size=20k none "$0" && cd "$0" && . {ROOT}/local/cmd.sh && cmd_backend=local && '
        "! train_cmd 1 x.log bash -c 'yes'"
    )
    done = subprocess.run(["unshare", "-m", "bash", "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    if "unshare: " in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"only root makes small disks: {done.stderr.splitlines()[0]}")
    said = "run_jobs: x.log cannot be written: No space left on device: free some space there, then run the stage again"
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == said


@pytest.mark.parametrize(
    "command, words",
    [("train_cmd 2 x.log true", "put @JOB@"), ("train_cmd x.log true", "usage"), ("train_cmd 0 x.log true", "usage")],
)
def test_wrong_job_calls_are_told(tmp_path, command, words):
    done = run_shell(command, tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_stopping_the_script_stops_the_jobs_children(tmp_path):
    script = f"set -eu; . {ROOT}/local/cmd.sh; train_cmd 2 x.@JOB@.log bash -c 'sleep 60 & echo $! >pid.@JOB@; wait'"
    # Jobs of a non-interactive shell inherit an ignored Ctrl-C, and bash cannot trap what it finds ignored.
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not all((tmp_path / f"pid.{job}").exists() for job in "12") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) != 0
    for job in "12":
        status = Path(f"/proc/{(tmp_path / f'pid.{job}').read_text().strip()}/status")
        deadline = time.monotonic() + 5
        while status.exists() and "zombie" not in status.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not status.exists() or "zombie" in status.read_text()


@pytest.fixture
def slurm(tmp_path):
    """The environment of a queue of two tasks that runs them at once."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >args\nstatus=0\n'
        "for task in 1 2; do [[ $* != *--array=1-1* || $task = 1 ]] || continue; "
        'SLURM_CPUS_PER_TASK=4 SLURM_ARRAY_TASK_ID=$task bash "${@: -1}" || status=$?; done\n'
        "exit $status\n"
    )
    sbatch.chmod(0o755)
    return {"cmd_backend": "slurm", "PATH": f"{sbatch.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("command", ["decode_cmd 1 x.log true", "pooled_cmd 1 x.log true", "sharded_cmd 1 x.log true"])
@pytest.mark.parametrize(
    "env, says",
    [
        ({"cmd_backend": "slrum"}, "cmd_backend is local or slurm, not 'slrum'"),
        ({"cmd_backend": "slurm"}, "no sbatch here: use cmd_backend=local"),
    ],
)
def test_jobs_that_cannot_be_started_are_one_line(tmp_path, command, env, says):
    done = run_shell(command, tmp_path, **env, PATH="/usr/bin:/bin")
    assert done.returncode == 2 and done.stderr == f"run_jobs: {says}\n" and not list(tmp_path.iterdir())


def test_slurm_needs_its_options(tmp_path, slurm):
    done = run_shell("decode_cmd 1 logs/x.log true", tmp_path, slurm_conf="absent.conf", **slurm)
    assert done.returncode == 2 and "cannot read absent.conf: name another by slurm_conf=FILE" in done.stderr


def test_slurm_array_gets_options_and_runs_every_shard(tmp_path, slurm):
    done = run_shell(
        "decode_cmd --gpus 2 2 logs/d.@JOB@.log bash -c 'echo \"$OMP_NUM_THREADS\" @JOB@'", tmp_path, **slurm
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "args").read_text().splitlines()
    assert {"--wait", "--array=1-2", "--gres=gpu:2", "--cpus-per-gpu=2", "--time=24:00:00"} <= set(asked)
    assert not any(option.startswith(("--cpus-per-task", "--mem=")) for option in asked)  # sbatch refuses both
    assert [(tmp_path / f"logs/d.{job}.log").read_text().splitlines()[2] for job in "12"] == ["4 1", "4 2"]
    done = run_shell("decode_cmd 2 logs/d.@JOB@.log bash -c '[ @JOB@ = 1 ]'", tmp_path, **slurm)
    assert done.returncode == 1 and "1 of 2 jobs failed (2)" in done.stderr
    assert not any(re.match("--gres", option) for option in (tmp_path / "args").read_text().splitlines())
    # No empty argument for a kind without options, and the last line counts without its end.
    (tmp_path / "own.conf").write_text("all --mem=8G\ndecode\ndecode_gpu --gres=gpu:GPUS")
    done = run_shell(
        "decode_cmd --gpus 1 2 logs/e.@JOB@.log true", tmp_path, slurm_conf=str(tmp_path / "own.conf"), **slurm
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "args").read_text().splitlines()
    assert {"--mem=8G", "--gres=gpu:1"} <= set(asked) and "" not in asked


def test_a_second_job_of_one_training_waits_for_the_first(tmp_path, slurm):
    for command, waits in (("train_cmd 1 exp/a/train.log true", True), ("decode_cmd 1 exp/a/d.log true", False)):
        assert run_shell(command, tmp_path, **slurm).returncode == 0
        asked = (tmp_path / "args").read_text().splitlines()
        assert ("--dependency=singleton" in asked) == waits
        assert (f"--job-name={tmp_path}/exp/a/train.log" in asked) == waits  # one of each training


def test_paths_may_hold_the_word_job_and_logs_end_in_their_own_line(tmp_path):
    place = tmp_path / "JOB_7"
    done = run_shell(f"train_cmd 1 {place}/x.log printf '%s' {place}/JOB", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{place}/JOB" in (place / "x.log").read_text().splitlines() and [*tmp_path.iterdir()] == [place]


def test_work_on_a_set_is_sharded_where_there_is_a_queue(tmp_path, slurm):
    done = run_shell("sharded_cmd --gpus 1 2 logs/d.@JOB@.log echo set; pooled_cmd 2 logs/p.log echo set", tmp_path)
    assert done.stdout == "set --nj 2\nset --nj 2\n" and not (tmp_path / "logs").exists()
    done = run_shell("sharded_cmd --gpus 1 2 logs/d.@JOB@.log echo set", tmp_path, **slurm)
    assert done.stdout == "set\n"  # puts the shards together
    assert [(tmp_path / f"logs/d.{job}.log").read_text().splitlines()[2] for job in "12"] == [
        "set --shard 1/2",
        "set --shard 2/2",
    ]
    assert {"--array=1-2", "--gres=gpu:1"} <= set((tmp_path / "args").read_text().splitlines())
    assert run_shell("pooled_cmd 2 logs/p.log echo set", tmp_path, **slurm).stdout == ""
    assert (tmp_path / "logs/p.log").read_text().splitlines()[2] == "set --nj 2"
    assert {"--array=1-1", "--cpus-per-task=2"} <= set((tmp_path / "args").read_text().splitlines())
    done = run_shell("sharded_cmd 2 logs/d.@JOB@.log false; echo on", tmp_path, **slurm)
    assert done.returncode == 3 and done.stdout == "" and "2 of 2 jobs failed (1 2)" in done.stderr
