"""The files of docs/cluster: the Slurm script on two Ray nodes of this machine, the others by reading."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT
from typer.testing import CliRunner

from stages.cli import app

FILES = ROOT / "docs" / "cluster"
SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
# The run takes machines that join later, and this one is short: it waits until both are there.
REGIONCLIP = f"""#!/usr/bin/env bash
until ray status --address="127.0.0.1:$RAY_PORT" | grep -q "/2.0 CPU"; do sleep 0.5; done
exec {sys.executable} -m stages.cli "$@"
"""
SCONTROL = "#!/usr/bin/env bash\nprintf '127.0.0.1\\nlocalhost\\n'\n"


@pytest.mark.slow
def test_the_slurm_script_runs_on_all_nodes(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL), ("regionclip", REGIONCLIP)):
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    workspace = tmp_path / "ws"
    line = ["bash", str(FILES / "slurm.sh"), "concepts", "--config", "tiny", "--backend", "ray", "-w", str(workspace)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ray on 127.0.0.1:{port}: 2 CPUs" in done.stdout  # one per node
    assert "concepts   done" in done.stdout and list(workspace.glob("concepts/*/manifest.json"))


def test_the_yaml_files_ask_for_commands_that_there_are() -> None:
    job = yaml.safe_load((FILES / "kubernetes.yaml").read_text())
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    commands = [job["spec"]["entrypoint"], *re.findall(r"'(regionclip [^']*)'", (FILES / "ray_up.yaml").read_text())]
    assert len(commands) == 2 and yaml.safe_load((FILES / "ray_up.yaml").read_text())["provider"]["head_ip"]
    for command in commands:
        program, *arguments = command.split()
        checked = CliRunner().invoke(app, ["config", *arguments[1:]])  # its options are those of `run`
        assert program == "regionclip" and arguments[0] == "run" and checked.exit_code == 0, checked.output
