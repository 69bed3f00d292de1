#!/bin/bash
# Trains on several machines under Slurm, and resumes after pre-emption:
#
#   sbatch --nodes=4 scripts/slurm.sh --config rn50_configs/llc_20bit_dense_first.yaml --logging.name=NAME \
#       --data.train_dataset=train.beton --data.val_dataset=val.beton
#
# Each machine runs one torchrun, with one process per GPU. training.batch_size is the total over all.
# LLC_PYTHON names the interpreter (default: .venv/bin/python of the folder in which sbatch was called).
# Before the time limit and on pre-emption the run writes a checkpoint. It resumes there when Slurm requeues
# it, or when the same line is submitted again.
#SBATCH --job-name=llc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --output=%x-%j.log
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# torchrun passes these on and waits 30 s; SIGUSR1 would end it otherwise
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
exec srun "${LLC_PYTHON:-.venv/bin/python}" -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv_backend=c10d --rdzv_endpoint="$head:29500" --rdzv_id="$SLURM_JOB_ID" \
    train_llc.py --resume=auto "$@"
