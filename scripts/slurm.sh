#!/usr/bin/env bash
# Trains on one machine or several under Slurm, and resumes after pre-emption and after the time limit:
#
#   sbatch --nodes=4 scripts/slurm.sh --config rn50_configs/llc_20bit_dense_first.yaml --logging.name=NAME \
#       --data.train_dataset=train.beton --data.val_dataset=val.beton
#
# The arguments are those of train_llc.py. Each machine runs one torchrun, with one process per GPU;
# training.batch_size is the total over all. LLC_PYTHON names the interpreter (default: .venv/bin/python of
# the folder in which sbatch was called). A run that is stopped before its end writes a checkpoint, is put
# into the queue again, and resumes, until it is finished; scancel ends it for good.
#SBATCH --job-name=llc
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
# Two minutes before the time limit, and sent to this script alone, which must know that the limit came
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%j.log
# A job that is queued again would otherwise begin its log anew
#SBATCH --open-mode=append
set -euo pipefail

read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")   # the processes meet there
port=$((20000 + SLURM_JOB_ID % 10000))   # jobs may share a machine; Linux itself gives out higher ports

# torchrun passes these signals on, and kills what has not ended after so many seconds (its own: 30)
signals=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100

warned=
trap 'warned=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1   # to the processes of srun

# Without --cpu-bind some clusters would keep all processes of a machine on one core.
srun --cpu-bind=none "${LLC_PYTHON:-.venv/bin/python}" -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-gpu}" \
    --rdzv_backend=c10d --rdzv_endpoint="$first:$port" --rdzv_id="$SLURM_JOB_ID" \
    --signals_to_handle="$signals" \
    train_llc.py --resume=auto "$@" &
run=$!
status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do   # it was a signal that ended the wait
    status=0
    wait "$run" || status=$?
done

# Slurm queues a pre-empted job again by itself, unless the job ends within the time of grace that some
# clusters give.
preempted() { scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; }
if [ "$status" != 0 ] && { [ -n "$warned" ] || preempted; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
