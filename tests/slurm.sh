#!/usr/bin/env bash
# Runs a command on a SLURM of its own: one node on loopback, in a temporary folder, gone again afterwards.
#   tests/slurm.sh python -m pytest -m slurm
# Says why and succeeds where SLURM is not there and cannot be installed (that takes root on Debian).
set -euo pipefail

skip() { echo "skipped: $*"; exit 0; }
has_slurm() { command -v slurmctld slurmd sbatch squeue >/dev/null; }

if ! has_slurm; then
    [ "$(id -u)" = 0 ] || skip "SLURM is not installed, and only root can do that"
    command -v apt-get >/dev/null || skip "SLURM is not installed, and this is not a Debian"
    { apt-get update && apt-get install --yes --no-install-recommends slurmctld slurmd slurm-client; } >/dev/null 2>&1 ||
        skip "SLURM cannot be installed here (apt-get failed)"
fi
[ "$(id -u)" = 0 ] || skip "a SLURM of one's own has to be started by root"

folder=$(mktemp -d)
mkdir "$folder/state" "$folder/spool"
export SLURM_CONF=$folder/slurm.conf
host=$(uname -n)
# More processors than there may be, so that several small jobs run at once. Nobody but this script talks to it, so
# nobody has to show who they are; without accounting, as on many small clusters.
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=${host%%.*}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=20
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0
ReturnToService=2
KillWait=3
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmdParameters=config_overrides
NodeName=${host%%.*} NodeAddr=127.0.0.1 CPUs=6 RealMemory=16000 State=UNKNOWN
PartitionName=test Nodes=${host%%.*} Default=YES MaxTime=INFINITE State=UP
CONF

slurmctld -D -i >"$folder/slurmctld.log" 2>&1 &
controller=$!
slurmd -D >"$folder/slurmd.log" 2>&1 &
node=$!

stop() {
    scancel --user="$(id -u)" 2>/dev/null || true
    for _ in $(seq 30); do [ -n "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.5; done
    kill "$node" "$controller" 2>/dev/null || true
    wait "$node" "$controller" 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT

for _ in $(seq 120); do
    [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] && up=1 && break
    sleep 0.5
done
if [ -z "${up:-}" ]; then
    tail -n 5 "$folder"/slurmctld.log "$folder"/slurmd.log >&2
    echo "SLURM did not start" >&2
    exit 1
fi
"$@"
