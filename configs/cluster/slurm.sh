#!/usr/bin/env bash
# A search on nodes of a SLURM cluster: sbatch configs/cluster/slurm.sh job.yaml
#
# A Ray cluster is started on the nodes of the allocation, with a token of its own, and the search
# runs on the first of them. Before the time is up SLURM sends SIGTERM: what is under way is
# finished, and the job goes back into the queue, where it goes on with the same archive. That and
# the models are on a file system that all nodes share. Set `workers.count: auto` in the job.
#SBATCH --job-name=mergefront
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=mergefront-%j.log
#SBATCH --open-mode=append
set -euo pipefail

job=${1:?usage: sbatch slurm.sh JOB.yaml}
port=$((20000 + SLURM_JOB_ID % 20000))

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Since SLURM 22.05 a step does not take over the processors per task of its job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

# start NODE ARGUMENTS...: starts Ray on a node, and stays there.
start() {
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap -w "$node" ray start --block \
        --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats "$@" &
}

start "$head" --head --node-ip-address="$address" --port="$port" --include-dashboard=false
end=$((SECONDS + ${RAY_START_S:-300}))
until srun --nodes=1 --ntasks=1 --overlap -w "$head" \
    ray status --address "$address:$port" >/dev/null 2>&1; do
    if ((SECONDS >= end)); then
        echo "no Ray on $head after ${RAY_START_S:-300} s; what it said is above" >&2
        exit 1
    fi
    sleep 2
done
for node in "${nodes[@]:1}"; do
    start "$node" --address="$address:$port"
done

# The search gets the signal, and this script waits for it to end.
srun --nodes=1 --ntasks=1 --overlap -w "$head" \
    mergefront run "$job" --or-resume --plain --set "workers.address=$address:$port" \
    --set workers.grace_s=90 &
search=$!
requeue=false
trap 'requeue=true; kill -TERM "$search"' TERM
status=0
while kill -0 "$search" 2>/dev/null; do
    status=0
    wait "$search" || status=$?
done

if "$requeue"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
