"""Workers of `defectnet simulate --executor parsl --parsl-config configs/parsl-slurm.py` as SLURM jobs.

Change what is marked. The command itself runs on a login node, in screen or tmux, and needs no memory to speak of.
"""

from parsl import Config, HighThroughputExecutor
from parsl.addresses import address_by_hostname
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="slurm",
            address=address_by_hostname(),  # of the login node, as the compute nodes see it
            max_workers_per_node=32,  # change: the cores of a node; a worker computes on one
            heartbeat_period=15,
            heartbeat_threshold=120,
            provider=SlurmProvider(
                partition="standard",  # change
                account="my-project",  # change, or leave out
                nodes_per_block=1,
                init_blocks=1,
                min_blocks=0,
                max_blocks=8,  # change: jobs at a time
                walltime="12:00:00",  # change
                exclusive=True,
                mem_per_node=120,  # change: GB; see --memory-gib for one worker
                launcher=SrunLauncher(),
                worker_init="source $HOME/defectnet/.venv/bin/activate",  # change: what makes defectnet importable
            ),
        )
    ],
    strategy="simple",  # as many jobs as there is work for, up to max_blocks
    max_idletime=300,
)
