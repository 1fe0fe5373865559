"""Accelerate reads the files that lorarun config writes; lorarun reads every kind of file that this Accelerate writes."""

import subprocess
from pathlib import Path

from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.config.default import write_basic_config
from accelerate.utils import ComputeEnvironment, DistributedType


def check(lorarun, folder):
    folder = Path(folder)
    # machines, number of this machine, address, port, GPUs, ranks, which GPUs, precision
    answers = "2\n1\n10.0.0.1\n29501\nyes\n8\n0,1,2,3\nbf16\n"
    ours = folder / "ours.yaml"
    subprocess.run([lorarun, "config", "--config", ours], input=answers, text=True, check=True, stdout=subprocess.DEVNULL)
    read = load_config_from_file(str(ours))
    expected = dict(distributed_type=DistributedType.MULTI_GPU, num_machines=2, machine_rank=1, num_processes=8, gpu_ids="0,1,2,3",
                    main_process_ip="10.0.0.1", main_process_port=29501, mixed_precision="bf16", use_cpu=False)
    for name, value in expected.items():
        assert getattr(read, name) == value, f"{name} is {getattr(read, name)!r} to Accelerate, not {value!r}"

    theirs = folder / "theirs.yaml"
    config = ClusterConfig(compute_environment=ComputeEnvironment.LOCAL_MACHINE, distributed_type=DistributedType.MULTI_CPU,
                           mixed_precision="no", use_cpu=True, debug=False, num_processes=3, downcast_bf16="no", same_network=True)
    config.to_yaml_file(str(theirs))
    shown = subprocess.run([lorarun, "config", "--show", "--config", theirs], text=True, check=True, capture_output=True).stdout
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert lines["num_processes"][0] == "3" and lines["num_processes"][1].startswith(str(theirs)), shown
    assert lines["use_cpu"][0] == "true" and lines["mixed_precision"][0] == "no", shown
    understood, refused = check_kinds(lorarun, folder)
    return f"{len(expected)} settings as written; of theirs {understood} understood, {refused} refused"


def check_kinds(lorarun, folder):
    """Every kind of file that this Accelerate writes is understood as Accelerate reads it, or refused with the key."""
    ours_too = {DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU}
    local = dict(compute_environment=ComputeEnvironment.LOCAL_MACHINE, debug=False)
    understood = refused = 0
    for kind in DistributedType:
        for precision, suffix in (("no", ".yaml"), ("fp16", ".json"), ("bf16", ".yaml")):
            path = folder / f"{kind.value}-{precision}{suffix}"
            config = ClusterConfig(distributed_type=kind, mixed_precision=precision, use_cpu=kind == DistributedType.MULTI_CPU,
                                   num_processes=1 if kind == DistributedType.NO else 4, **local)
            (config.to_yaml_file if suffix == ".yaml" else config.to_json_file)(str(path))
            run = subprocess.run([lorarun, "config", "--show", "--config", path], text=True, capture_output=True)
            if kind in ours_too:
                lines = {line.split()[0]: line.split()[1] for line in run.stdout.splitlines()}
                assert lines["num_processes"] == str(load_config_from_file(str(path)).num_processes), (path, run)
                assert lines["mixed_precision"] == precision and run.stderr == "", (path, run)
                understood += 1
            else:
                assert run.returncode != 0 and f"distributed_type is {kind.value}" in run.stderr, (path, run)
                refused += 1
    path = folder / "basic" / "default_config.yaml"  # JSON, whatever its name says
    write_basic_config("bf16", str(path))
    run = subprocess.run([lorarun, "config", "--show", "--config", path], text=True, check=True, capture_output=True)
    assert "mixed_precision              bf16 " in run.stdout and run.stderr == "", run
    return understood + 1, refused
