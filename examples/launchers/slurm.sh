#!/bin/bash
# A run on the nodes of a SLURM job, without a common disk:
#   sbatch --nodes=3 examples/launchers/slurm.sh configs/quickstart.yaml trainer.ranks=2
# The first node gets the label role=learner, the others role=rollout: use them in cluster.labels. Its driver writes the
# run's folder there; give root=... on a disk that outlives the job. PARL_PYTHON: the interpreter, the same on every node.
#SBATCH --job-name=parl
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=parl-%j.log
set -euo pipefail

python=${PARL_PYTHON:-python}
port=${PARL_RAY_PORT:-6379}
nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
cpus=${SLURM_CPUS_ON_NODE:?SLURM does not say how many CPUs a node has}
mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${names[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
head_ip=${head_ip%% *}
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

common=(--num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block)
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  "$python" -m ray.scripts.scripts start --head --node-ip-address="$head_ip" --port="$port" \
  --include-dashboard=false --labels=role=learner "${common[@]}" &
if ((nodes > 1)); then
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --overlap \
    "$python" -m ray.scripts.scripts start --address="$head_ip:$port" --labels=role=rollout "${common[@]}" &
fi

on_head=(srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap)
"${on_head[@]}" "$python" -m parl cluster check "$head_ip:$port" --nodes "$nodes"
"${on_head[@]}" "$python" -m parl train "$@" cluster.address="$head_ip:$port" &
driver=$!
again=true
trap 'again=true; kill -TERM "$driver" || true' TERM # the end of the job's time: the last step is saved; --resume goes on
while $again; do # a signal ends wait, and the driver then needs a while to save
  again=false code=0
  wait "$driver" || code=$?
done
exit "$code"
