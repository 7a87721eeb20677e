"""The commands of Slurm that submitit uses, imitated on this machine for tests: `fake_slurm.py COMMAND FOLDER ...`."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path


def sbatch(folder: Path, script: str) -> None:
    """Starts the tasks of the script's array, or its single job."""
    number = str(1000 + len(list(folder.glob("script-*"))))
    text = Path(script).read_text()
    (folder / f"script-{number}").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        name, variables = number, {"SLURM_JOB_ID": number}
        if task is not None:
            name = f"{number}_{task}"
            variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(task)}
        process = subprocess.Popen(
            ["bash", "-c", f"bash {shlex.quote(script)}; rm -f {folder}/pid-{name}"],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        (folder / f"pid-{name}").write_text(str(process.pid))
        process.returncode = 0  # nobody here waits for it
    print(f"Submitted batch job {number}")


def srun(folder: Path, *command: str) -> None:
    """Runs the command that follows the options."""
    command = command[command.index("--error") + 2 :]
    os.execvp(command[0], command)


def squeue(folder: Path, *options: str) -> None:
    """Names the jobs that run."""
    print(*(path.name.removeprefix("pid-") for path in folder.glob("pid-*")), sep="\n")


def scancel(folder: Path, name: str) -> None:
    """Kills a job with all its processes."""
    path = folder / f"pid-{name}"
    if path.exists():
        os.killpg(int(path.read_text()), signal.SIGKILL)
        path.unlink()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
