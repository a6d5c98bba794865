#!/usr/bin/env bash
# A run on several machines of a Slurm cluster: sbatch docs/cluster/slurm.sh --config my.yaml --workspace /shared/runs/a
# What follows the script's name goes to `regionclip run`. Workspace, data and this installation have to be on a file
# system that all machines see.
#SBATCH --job-name=regionclip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
set -euo pipefail

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<< "$nodes")
address=$head:${RAY_PORT:-6379}

# Nobody else on the machines can join or give work: the token is this job's own.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

start() {  # HOST, and how Ray starts there; it lives as long as the job
  srun --nodes=1 --ntasks=1 --nodelist="$1" \
    ray start "${@:2}" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --disable-usage-stats --block &
}

trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
start "$head" --head --node-ip-address="$head" --port="${address##*:}" --include-dashboard=false
until ray status --address="$address" > /dev/null 2>&1; do
  kill -0 $! || { echo "Ray's head did not start on $head" >&2; exit 1; }
  sleep 1
done
for node in $(tail -n +2 <<< "$nodes"); do
  start "$node" --address="$address"
done

# The run takes machines that join later, too, so it needs no wait for them.
regionclip run "$@" --set execution.address="$address"
