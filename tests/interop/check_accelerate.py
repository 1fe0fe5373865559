"""A file that lorarun config wrote is one of Accelerate's, and the other way round."""

import subprocess
from pathlib import Path

from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import ComputeEnvironment, DistributedType


def check(lorarun, folder):
    folder = Path(folder)
    # machines, number of this one, address, port, GPUs, ranks, which GPUs, precision
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
    return f"{len(expected)} settings as written, theirs with {len(lines)} shown"
